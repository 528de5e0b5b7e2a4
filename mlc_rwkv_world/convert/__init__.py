"""From a checkpoint's tensors to an artifact's shards."""
