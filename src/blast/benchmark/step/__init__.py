"""What the suite `training_step` is made of."""
