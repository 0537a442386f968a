"""Each public name of `blast` has an example in its docstring, and the example runs.

An example sees `blast`, `torch`, and a small GPT-2: `model`, its `optimizer`, and `masks` of its MLP matrices. Weights
outside the masks are zero. The working directory is empty.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect

import pytest
import torch
from sparse_pairs import masked, random_masks
from sparsity_models import tiny_gpt2

import blast

NAMES = [name for name in blast.__all__ if name != "__version__"]
# Names whose docstrings have no example yet.
PENDING = {"Sparsifier", "SparsifyConfig", "METHODS", "average_gradients"}


def docstring(name: str) -> str:
    """The docstring of a class or function, or the text that follows a constant."""
    module = importlib.import_module(blast._HOME[name])
    body = ast.parse(inspect.getsource(module)).body
    for place, node in enumerate(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        following = body[place + 1] if place + 1 < len(body) else None
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            text = following.value if isinstance(following, ast.Expr) else None
            return inspect.cleandoc(text.value) if isinstance(text, ast.Constant) else ""
    raise LookupError(f"{name} is not defined in {module.__name__}")


@pytest.mark.parametrize("name", NAMES)
def test_the_example_in_the_docstring_runs(name, tmp_path, monkeypatch):
    if name in PENDING:
        pytest.skip("no example yet")
    monkeypatch.chdir(tmp_path)
    model = tiny_gpt2()
    masks = random_masks(model)
    variables = {
        "blast": blast,
        "torch": torch,
        "model": masked(model, masks),
        "masks": masks,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
    }
    example = doctest.DocTestParser().get_doctest(docstring(name), variables, f"blast.{name}", None, 0)
    assert example.examples, f"the docstring of blast.{name} has no '>>>' example"
    output: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=output.append)
    assert not output, "".join(output)
