"""A folder with the workflow in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow_place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with the workflow in it and nothing else."""
    return Place(tmp_path)
