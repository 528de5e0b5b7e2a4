"""RWKV-5, and what RWKV-6 has of it, on CUDA."""
