"""Training: settings, the loop, and resuming it."""
