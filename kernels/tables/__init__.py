"""Reads the tables of measurements in `tuned/`."""
