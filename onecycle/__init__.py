"""Train any PyTorch model with the 1cycle policy."""
