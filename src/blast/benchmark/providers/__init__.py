"""The implementations that are timed in one run: ours, dense, and peers from other projects."""
