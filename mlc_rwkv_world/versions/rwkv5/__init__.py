"""RWKV-5: the model, its parts, its reference, and the kernels that it cannot do without."""
