"""What was measured: records, rows, the table of both, export and import."""
