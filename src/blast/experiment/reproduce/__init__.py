"""A record measured again, and a claim of the paper tried here."""
