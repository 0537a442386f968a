"""Verbs of the command `blast`, one module a group; verbs of a room stand in its own `commands.py`."""
