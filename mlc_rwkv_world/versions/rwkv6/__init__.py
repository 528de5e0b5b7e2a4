"""RWKV-6: what it has beyond RWKV-5, whose recurrence it shares."""
