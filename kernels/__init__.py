"""Block-sparse kernels for PyTorch: plain tensors in, plain tensors out. Imported as `blast_kernels`."""
