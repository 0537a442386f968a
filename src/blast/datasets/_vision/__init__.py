"""Image classification: readers of the formats, splits and batches."""
