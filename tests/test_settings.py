from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.settings import (
    Bounds,
    Count,
    ListOrOne,
    NotEmpty,
    PartOf,
    Place,
    Share,
    check_fields,
    plain,
    read,
    read_part,
    updated,
)


@dataclass(frozen=True)
class Inner:
    side: Count = 1


@dataclass(frozen=True)
class Outer:
    steps: Count
    rate: Annotated[float, Bounds(gt=0)] = 0.5
    share: Share | None = None
    kind: Literal["one", "two"] = "one"
    flag: bool = False
    words: Annotated[tuple[str, ...], NotEmpty(), ListOrOne()] = ("a",)
    pair: tuple[int, int] | int = 3
    inner: Inner = Inner()
    part: Annotated[dict[str, Any], PartOf(Inner, {"away": "someone else"})] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "outer setting")


def test_a_mapping_becomes_settings_and_gives_the_same_mapping_back():
    values = {"steps": 3, "rate": 1, "share": 0.5, "kind": "two", "flag": True, "words": ["b", "c"], "pair": [1, 2],
              "inner": {"side": 4}, "part": {"side": 5}}  # fmt: skip
    settings = read(Outer, values)
    assert settings == Outer(3, 1, 0.5, "two", True, ("b", "c"), (1, 2), Inner(4), {"side": 5})
    assert plain(settings) == values
    assert read(Outer, plain(settings)) == settings


def test_defaults_fill_what_is_not_given():
    assert read(Outer, {"steps": 3}) == Outer(steps=3)


def test_a_constructor_checks_as_the_reader_does():
    assert Outer(steps="1e1", words="alone") == Outer(steps=10, words=("alone",))
    with pytest.raises(BlastError, match=r"the outer setting 'steps' is 0; give a whole number of at least 1\."):
        Outer(steps=0)


def test_a_whole_number_stays_one_where_any_number_is_wanted():
    assert repr(read(Outer, {"steps": 1, "rate": 2}).rate) == "2"
    assert repr(read(Outer, {"steps": 4.0}).steps) == "4"


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), ("1E3", 1000.0), ("+.5", 0.5), ("5.", 5.0), ("7", 7), (" 7 ", 7), ("1e+2", 100.0)],
)
def test_text_that_is_a_number_is_one(text, number):
    assert read(Outer, {"steps": 1, "rate": text}).rate == number


@pytest.mark.parametrize("text", ["", " ", "nan", "inf", "1_0", "0x10", "1e", "e3", "1,5", "٣", "1e999", "9" * 400])
def test_other_text_is_none(text):
    with pytest.raises(BlastError, match="give a number above 0"):
        read(Outer, {"steps": 1, "rate": text})


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300))
def test_every_number_may_be_written_as_text(number):
    assert read(Outer, {"steps": 1, "rate": repr(number)}).rate == number


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "the key 'steps' is missing; add it."),
        ([1], "[1] is no mapping of keys to values; give one."),
        ({"steps": 1, "flg": True}, "unknown key 'flg'; did you mean 'flag'?"),
        ({"steps": 1, "flag": 1}, "the key 'flag' is 1; give true or false."),
        ({"steps": True}, "the key 'steps' is True; give a whole number of at least 1."),
        ({"steps": 1.5}, "the key 'steps' is 1.5; give a whole number"),
        ({"steps": float("nan")}, "the key 'steps' is nan; give a whole number"),
        ({"steps": 1, "rate": 10**400}, "the key 'rate' is 1000"),
        ({"steps": 1, "share": 1.1}, "the key 'share' is 1.1; give a number from 0 to 1."),
        ({"steps": 1, "kind": "tow"}, "the key 'kind' is 'tow'; did you mean 'two'?"),
        ({"steps": 1, "kind": "x"}, "the key 'kind' is 'x'; give one of: one, two."),
        ({"steps": 1, "words": []}, "the key 'words' is []; give a list with at least one entry."),
        ({"steps": 1, "words": ["a", 2]}, "the key 'words.1' is 2; give text"),
        ({"steps": 1, "pair": [1]}, "the key 'pair' is [1]; give a list of 2 entries."),
        ({"steps": 1, "inner": {"side": 0}}, "the key 'inner.side' is 0; give a whole number of at least 1."),
        ({"steps": 1, "inner": {"sde": 1}}, "in 'inner': unknown key 'sde'; did you mean 'side'?"),
        ({"steps": 1, "part": {"away": 1}}, "the key 'part.away' is set by someone else; remove it here."),
        ({"steps": 1, "part": {"side": None}}, "the key 'part.side' is null; give a whole number of at least 1."),
        ({"steps": 1, 2: 3}, "the mapping of keys has the key 2, which is no text"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_with_place_value_and_remedy(values, sentence):
    with pytest.raises(BlastError) as caught:
        read(Outer, values)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_part_has_the_given_keys_alone():
    assert read_part(Outer, {"rate": "1e-3"}) == {"rate": 0.001}


def test_given_values_replace_those_of_other_defaults():
    assert updated(Outer(steps=7, flag=True), {"rate": 2}, Place("setting")) == Outer(steps=7, flag=True, rate=2)
    with pytest.raises(BlastError, match="unknown setting 'rat'; did you mean 'rate'"):
        updated(Outer(steps=7), {"rat": 2}, Place("setting"))
