"""What a model's values are, operation by operation, and how well a model predicts text."""
