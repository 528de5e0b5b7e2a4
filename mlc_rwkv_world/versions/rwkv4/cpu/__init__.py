"""RWKV-4 on a CPU."""
