"""Records (the JSON results of points), their rows and table, fingerprints of code, export and import."""
