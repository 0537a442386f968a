"""What a model is worth: our own loss and top-k, and the scoring of ready-made evaluation requests.

Everything here needs torch alone and gives the same numbers on the same machine: batches have a fixed order and size.
"""
