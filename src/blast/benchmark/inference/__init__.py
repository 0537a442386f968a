"""What the inference suites share."""
