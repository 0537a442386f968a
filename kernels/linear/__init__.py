"""`x · Wᵀ` with a block-sparse `W`, and its gradients: the operator of one matrix."""
