"""What follows from rows: comparisons, ratios, claims."""
