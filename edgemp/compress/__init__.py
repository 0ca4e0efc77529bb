"""Transforms that make a network smaller or cheaper: quantization, 16-bit weights."""
