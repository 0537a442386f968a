"""What the suite `inference` needs: its models, their entries, and the parts of a step."""
