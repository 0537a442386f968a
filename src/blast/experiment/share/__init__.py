"""Bundles: the results of a grid in one file, addressed by their content, that another machine verifies."""
