"""Pipelines a newcomer can compile and run."""
