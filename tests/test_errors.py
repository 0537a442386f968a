"""A message is one line, whatever it repeats of a file."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blast.checkpoint.allocation import TooLittleMemoryError
from blast.errors import BlastError, unknown_name
from blast.sparsity.scores import NonFiniteGradientError


@given(st.text(max_size=60))
def test_a_message_is_one_line_without_control_characters(name):
    for error in (BlastError(f"unknown key '{name}'; leave it out."), unknown_name("key", name, ["steps", "a\nb"])):
        said = str(error)
        assert said.splitlines() == [said]
        assert not any(char in said for char in "\n\r\t\x07\x1b\x7f\x85\u2028")
        assert str(pickle.loads(pickle.dumps(error))) == said


@pytest.mark.parametrize("text", ["é ↔ 漢字", "C:\\new", "'quoted'", ""])
def test_other_text_stays_as_it_is(text):
    assert str(BlastError(text)) == text


def test_errors_of_a_kind_of_their_own_do_so_too():
    assert str(TooLittleMemoryError("a\nb")) == r"a\nb"
    assert str(NonFiniteGradientError("a\x1b[2Jb", only_dead=True)) == r"a\x1b[2Jb"
