"""Text corpora: split by file, tokenize, cut into shards."""
