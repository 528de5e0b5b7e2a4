"""RWKV-7 on CUDA."""
