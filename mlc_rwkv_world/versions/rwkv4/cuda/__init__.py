"""RWKV-4 on CUDA."""
