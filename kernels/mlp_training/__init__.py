"""The operator of a whole block-sparse MLP in training: forward and gradients."""
