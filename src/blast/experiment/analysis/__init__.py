"""Results derived from rows: comparisons with dense, ratios, verdicts on the paper's claims."""
