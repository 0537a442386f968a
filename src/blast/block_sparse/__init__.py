"""The format: blocks, block-CSR and its index, and matrices sharded over processes. Tensors in, tensors out."""
