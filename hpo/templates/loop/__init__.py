"""A training loop of one's own, without PyTorch."""
