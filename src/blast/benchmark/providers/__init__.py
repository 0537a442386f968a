"""The implementations that are timed side by side: ours, dense, and other people's."""
