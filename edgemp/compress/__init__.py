"""Transforms that make a network smaller or cheaper: quantizing, shrinking, distilling, 16-bit weights."""
