"""Inputs of the suites: masks, weights and batches."""
