"""fp32 matrix products and convolutions as C functions, compiled per target."""
