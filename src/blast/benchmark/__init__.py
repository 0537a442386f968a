"""All timing. A suite is one file of this folder with `measure(architecture, sparsity, block, seed, settings)`."""
