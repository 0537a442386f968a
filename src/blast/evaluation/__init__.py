"""Evaluation of a model: its loss and top-k accuracy, and the scores of prepared evaluation requests.

It needs torch only. It gives the same numbers on the same machine, because batches have a fixed order and size.
"""
