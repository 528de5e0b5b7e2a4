"""From a model's configuration to a library for one target."""
