"""Benchmarks of a bundle on the machine that runs it: latency, duty cycle, energy, report."""
