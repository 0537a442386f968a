"""Evaluation sets of lm-eval's tasks."""
