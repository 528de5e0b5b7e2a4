"""What models are made of: parts, layers, state, segments."""
