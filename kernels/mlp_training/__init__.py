"""A whole block-sparse MLP with gradients."""
