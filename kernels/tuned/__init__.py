"""Tables measured on one GPU each, `<gpu>.json`; see `break_even` for what is in them."""
