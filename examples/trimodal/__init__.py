"""Trimodal digits: a scan, a voice and a text say the same digit, and any of them may fail."""
