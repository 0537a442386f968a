"""The operator of a linear layer: `x · Wᵀ` with a block-sparse `W`, and its gradients."""
