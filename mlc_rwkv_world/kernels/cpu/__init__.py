"""Kernels for CPUs, and what they are built of."""
