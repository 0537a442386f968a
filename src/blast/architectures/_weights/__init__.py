"""Where published weights come from and how they are opened."""
