"""The block-sparse format, the layers that compute with it, and the way of a whole model there and back."""
