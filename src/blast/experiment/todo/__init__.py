"""What is left to do in a grid, read from its files; the workflow plans these jobs and no others."""
