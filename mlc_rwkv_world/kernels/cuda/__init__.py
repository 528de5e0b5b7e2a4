"""Kernels for CUDA, and what they are built of."""
