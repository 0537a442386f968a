"""What the suite `kernel_plans` is made of."""
