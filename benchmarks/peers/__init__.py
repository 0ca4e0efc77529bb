"""The parts of `benchmarks/peers.py`: workloads, their material, engines, the race, the report."""
