"""Modules that compute with block-sparse matrices."""
