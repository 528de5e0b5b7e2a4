"""Kernels for every target, one file for each operation."""
