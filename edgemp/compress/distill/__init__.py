"""Training a smaller or quantized student to answer as its teacher does: losses, loop, block by block."""
