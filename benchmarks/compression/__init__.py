"""The cases of benchmarks/compress.py, a file each."""
