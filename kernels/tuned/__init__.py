"""Measured tables, one `<gpu>.json` for each GPU; `tables.break_even` and `mlp_inference.tuned_configs` read them."""
