"""`edgemp bench`: latency benchmarks of a bundle, alone or against another one."""
