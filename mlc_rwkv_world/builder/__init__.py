"""Builds an artifact: a checkpoint's weights, converted, and a library that computes with them."""

from mlc_rwkv_world.builder.assemble import Artifact, build

__all__ = ["Artifact", "build"]
