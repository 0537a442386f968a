"""Products and compilation of the suite `kernel_plans`."""
