"""What is timed: masks, weights, batches."""
