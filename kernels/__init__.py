"""Native kernels, one folder each: reference, source, build, benchmark."""
