"""The on-device runtime: opens a verified bundle and executes it step by step. Imports no compile-side package."""
