"""Which integer results every runtime agrees on, and where kernels saturate."""
