"""The stages that fetch and prepare data."""
