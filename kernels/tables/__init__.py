"""Readers of the measured tables of a GPU in `tuned/`."""
