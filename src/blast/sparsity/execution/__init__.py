"""How a model runs while it trains, masked-dense or sparse, and the switch between the two."""
