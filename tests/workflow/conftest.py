"""A folder with the workflow in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow_place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with the workflow in it and nothing else; a shell would take its name apart."""
    return Place(tmp_path / """my "clone's" $HOME & co""")
