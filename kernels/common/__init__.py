"""What the operators share: dense references, activations, tile order, quantisation, checks."""
