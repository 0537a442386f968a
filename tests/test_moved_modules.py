"""Old import paths give the moved modules themselves, and say where they are."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from blast.moved_modules import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_the_module_of_the_new_one_and_warns(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"{old} is now {MOVED[old]}; import that instead"):
        module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__spec__.name == MOVED[old]


def test_names_can_be_imported_from_an_old_path_in_a_fresh_process():
    program = "from blast.sparsity.blocks import tiles as old; from blast.block_sparse.blocks import tiles"
    program += "; assert old is tiles"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=False).returncode == 0
