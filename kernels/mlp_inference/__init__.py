"""A whole block-sparse MLP without gradients, in two kernels."""
