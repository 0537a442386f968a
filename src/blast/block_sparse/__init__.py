"""The format: blocks, block-CSR and its index, and sharded matrices. Tensors in, tensors out."""
