"""Builds an artifact: a checkpoint's weights, converted, and a library that computes with them."""
