"""Each public name of `blast` has an example in its docstring, and the example runs.

An example sees `blast`, `torch`, and a small GPT-2: `model`, its `optimizer`, and `masks` of its MLP matrices. Weights
outside the masks are zero. The working directory is empty.
"""

from __future__ import annotations

import doctest

import pytest
import torch
from public_names import NAMES, docstring
from sparse_pairs import masked, random_masks
from sparsity_models import tiny_gpt2

import blast


@pytest.mark.parametrize("name", NAMES)
def test_the_example_in_the_docstring_runs(name, tmp_path, monkeypatch):
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
