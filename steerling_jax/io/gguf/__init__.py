"""GGUF files: their header, their tensors, and the config and weights of the models in them."""
