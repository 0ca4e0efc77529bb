"""The on-device runtime: opens a verified bundle and executes it step by step.

It imports no compile-side package.
"""
