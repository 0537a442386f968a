"""`python -m blast`: the command line."""

from __future__ import annotations

import sys

from blast.experiment.cli import main

sys.exit(main())
