"""RWKV-4: the model, its parts, its reference, and its kernels on CPUs and CUDA."""
