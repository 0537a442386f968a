"""Sentence classification (GLUE)."""
