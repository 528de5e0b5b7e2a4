"""RWKV-4: the model, its parts, and their kernels on CPUs and CUDA."""

from mlc_rwkv_world.versions.rwkv4 import cpu, cuda, model, parts

__all__ = ["cpu", "cuda", "model", "parts"]
