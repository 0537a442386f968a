"""What is to run: config, grid, points, paths, resources."""
