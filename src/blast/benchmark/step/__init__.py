"""Setup, time and memory breakdown, and entries of the suite `training_step`."""
