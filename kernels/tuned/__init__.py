"""Measured tables, one file for each GPU: `<gpu>.json`. `tables.break_even` and `mlp_inference.tuned_configs` read them."""
