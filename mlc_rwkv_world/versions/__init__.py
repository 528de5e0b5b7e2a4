"""The versions of RWKV, a folder each, and what their references have in common."""
