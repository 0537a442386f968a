"""The operator of a whole block-sparse MLP in training: forward and gradients.

`ops` registers the operator and `autograd` computes its forward and backward pass. `launch` launches the kernels, which
are in `gate_up`, `gather_matmul`, `hidden_grad` and `sddmm`. `heuristics` chooses their configs, `index_lists` builds
what they read of the masks, and `reference` computes the same in PyTorch.
"""
