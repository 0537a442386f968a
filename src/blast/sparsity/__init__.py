"""Making a model block-sparse while it trains: `Sparsifier(model, optimizer, SparsifyConfig(...))`.

The published text says that the method "iteratively sparsifies weight matrices into a block sparsity pattern". What is
built here is our reading of it: Zhu & Gupta's cubic schedule with RigL's drop and grow, on blocks. Each choice is a
switch of `SparsifyConfig`.
"""
