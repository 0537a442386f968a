"""The wheel holds all that the library needs: it works from an empty folder, without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from patience import PATIENCE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
USE = """
import sys
import blast, blast_kernels, torch
from torch import nn

for package in (blast, blast_kernels):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
model = nn.Sequential(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), nn.LayerNorm(32))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
sparsifier = blast.Sparsifier(model, optimizer, blast.SparsifyConfig(sparsity=0.5, block=16, steps=4))
for _ in range(4):
    model(torch.randn(8, 32)).square().mean().backward()
    sparsifier.step()
    optimizer.step()
    optimizer.zero_grad()
masks = sparsifier.masks
blast.save(blast.to_sparse(model, masks), "model")
dense = nn.Sequential(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), nn.LayerNorm(32))
loaded = blast.load("model", model=dense)
assert all(mask.float().mean() == 0.5 for mask in blast.masks_of(loaded).values())
x = torch.randn(8, 32)
assert torch.equal(loaded(x), model.eval()(x))
print(sorted(blast.masks_of(loaded)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, since a build writes into its source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in ("src", "kernels"):
        shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, timeout=PATIENCE)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_prunes_saves_and_loads_a_model_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", USE, str(site)]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['0.0', '0.2']"


def test_the_wheel_holds_every_file_of_both_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = set()
    for package, folder in (("blast", ROOT / "src" / "blast"), ("blast_kernels", ROOT / "kernels")):
        for pattern in ("*.py", "*.yaml", "*.json", "*.cpp", "*.h", "*.html", "*.css", "py.typed"):
            wanted |= {f"{package}/{file.relative_to(folder).as_posix()}" for file in folder.rglob(pattern)}
    assert held == wanted
