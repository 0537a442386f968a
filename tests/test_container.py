"""The recipe of the container names what is in the checkout. It is not built: there is no engine and no registry."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "workflow" / "container" / "Dockerfile"
# Those of the format, of which the recipe uses some.
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "VOLUME", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the recipe with its arguments; lines that end with a backslash go on."""
    lines = [line for line in RECIPE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines()]


def test_the_recipe_has_only_instructions_of_the_format_and_begins_with_an_image():
    found = instructions()
    assert found[0][0] == "FROM"
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert all(arguments.count('"') % 2 == 0 for _, arguments in found)


def test_the_recipe_copies_what_is_there_and_says_that_it_was_not_built():
    copied = [path for name, arguments in instructions() if name == "COPY" for path in arguments.split()[:-1]]
    assert copied == ["requirements.lock", "requirements-clusters.lock", "."]
    assert all((ROOT / path).exists() for path in copied)
    assert "Not built" in RECIPE.read_text()


def test_the_recipe_installs_the_lock_files_with_their_hashes_and_the_python_of_the_project():
    text = RECIPE.read_text()
    for lock in ("requirements.lock", "requirements-clusters.lock"):
        assert f"--require-hashes -r {lock}" in text
        assert "--hash=sha256:" in (ROOT / lock).read_text()
    assert "python:3.11" in text
