"""The public names of `blast` and where their definitions are in the source."""

from __future__ import annotations

import ast
import importlib
import inspect

import blast

NAMES = [name for name in blast.__all__ if name != "__version__"]


def definition(name: str) -> tuple[ast.stmt, ast.stmt | None]:
    """The statement that defines a public name, and the statement after it."""
    module = importlib.import_module(blast._HOME[name])
    body = ast.parse(inspect.getsource(module)).body
    for place, node in enumerate(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if getattr(node, "name", None) == name or name in names:
            return node, body[place + 1] if place + 1 < len(body) else None
    raise LookupError(f"{name} is not defined in {module.__name__}")


def docstring(name: str) -> str:
    """The docstring of a class or function, or the string that follows a constant."""
    node, following = definition(name)
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return ast.get_docstring(node) or ""
    text = following.value if isinstance(following, ast.Expr) else None
    return inspect.cleandoc(text.value) if isinstance(text, ast.Constant) else ""
