"""The parts of `benchmarks/peers.py`: workloads, what every engine is given, engines, the race, the report."""
