"""What kernels for Metal are built of."""
