"""The models in PyTorch, as its users write them, with our parameters."""
