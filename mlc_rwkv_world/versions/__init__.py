"""The versions of RWKV, a folder each and a line in `table`, and what they have in common."""
