"""Language evaluation: lm-eval's requests and metrics around our scores."""
