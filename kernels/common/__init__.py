"""Pieces that several operators use: dense math for references, activations, tile order, fp8, argument checks."""
