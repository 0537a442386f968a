"""Several processes that time one layer together: how they start, what each holds, and how times become one number."""
