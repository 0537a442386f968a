"""Two runs, grids, commits or machines side by side, and our results beside the paper's."""
