"""The public API is what `tests/public_api.txt` says; a change of it is announced in CHANGELOG.md.

python tests/test_public_api.py    # writes tests/public_api.txt again
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("public_api.txt")
sys.path.insert(0, str(SNAPSHOT.parent / "support"))

from public_names import NAMES, definition  # noqa: E402  (a module of tests/support)

import blast  # noqa: E402


def public_api() -> str:
    """Names and signatures of `blast.__all__`; of a class its fields and public methods too."""
    return "\n".join(line for name in NAMES for line in _lines(name)) + "\n"


def _lines(name: str) -> list[str]:
    node, _ = definition(name)
    if isinstance(node, ast.FunctionDef):
        return [_signature(node)]
    if not isinstance(node, ast.ClassDef):
        return [f"{name}: {', '.join(getattr(blast, name))}"]
    lines = [f"class {ast.unparse(ast.ClassDef(name, node.bases, [], [], [])).strip()[6:-1]}"]
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and (member.name == "__init__" or not member.name.startswith("_")):
            kinds = "".join(f"@{ast.unparse(kind)} " for kind in member.decorator_list)
            lines.append(f"    {kinds}{_signature(member)}")
        elif isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
            lines.append(f"    {ast.unparse(member)}")
    return lines


def _signature(node: ast.FunctionDef) -> str:
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returned}"


def test_the_public_api_is_that_of_the_snapshot():
    assert public_api() == SNAPSHOT.read_text(), (
        "the public API changed: announce the change in CHANGELOG.md, then run `python tests/test_public_api.py`"
    )


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api())
