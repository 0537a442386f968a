"""How a model in training runs: masked-dense or sparse, and the switch between them."""
