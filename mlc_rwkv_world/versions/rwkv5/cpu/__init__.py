"""RWKV-5 on a CPU."""
