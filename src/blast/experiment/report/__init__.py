"""The report of a grid: one HTML file to send to a colleague, which opens without a network."""
