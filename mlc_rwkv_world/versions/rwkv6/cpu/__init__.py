"""RWKV-6 on a CPU: what it has beyond RWKV-5."""
