"""The tables of keys in `config/README.md`, made from the settings classes.

A table stands below a line `<!-- keys of NAME -->`, where `NAME` is a settings class.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Literal, get_args, get_origin

from blast.errors import unknown_name
from blast.experiment.plan.config import FROM_POINT
from blast.experiment.plan.schema import described_fields, settings_classes
from blast.settings import Bounds, ListOrOne, OneOf, PartOf, field_hints, is_union, plain, split_hint
from blast.sparsity.config import METHOD_DETAILS

TABLE = re.compile(r"(<!-- (keys of (\w+)|methods) -->\n)(\|.*\n)*")


def with_tables(text: str) -> str:
    """A page with its tables made anew.

    Raises:
        BlastError: if the page asks for the keys of a class that is not there.
    """
    return TABLE.sub(lambda match: match[1] + (_keys(match[3]) if match[3] else _methods()), text)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _keys(name: str) -> str:
    classes = {kind.__name__: kind for kind in settings_classes()}
    if name not in classes:
        raise unknown_name("settings class", name, classes)
    settings = classes[name]
    texts, hints = described_fields(settings), field_hints(settings)
    rows = [_row("key", "value", "default", "meaning"), "|---|---|---|---|\n"]
    for field in dataclasses.fields(settings):
        if name == "SparsifyConfig" and field.name in FROM_POINT:
            continue
        rows.append(_row(f"`{field.name}`", _kind(hints[field.name]), _default(field), texts[field.name]))
    return "".join(rows)


def _methods() -> str:
    rows = [_row("method", "what it does"), "|---|---|\n"]
    return "".join([*rows, *(_row(f"`{name}`", method.description) for name, method in METHOD_DETAILS.items())])


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING or field.default in (None, ()):
        return ""
    return "needed" if field.default is dataclasses.MISSING else f"`{json.dumps(plain(field.default))}`"


def _kind(hint: Any) -> str:
    """What a key may hold, in words."""
    bare, marks = split_hint(hint)
    if PartOf in marks:
        return "mapping"
    if is_union(bare):
        return " or ".join(_kind(option) for option in get_args(bare) if option is not type(None))
    if OneOf in marks or get_origin(bare) is Literal:
        names = marks[OneOf].names if OneOf in marks else get_args(bare)
        return ", ".join(f"`{name}`" for name in names)
    if dataclasses.is_dataclass(bare) or get_origin(bare) is dict:
        return "mapping"
    if get_origin(bare) is tuple:
        kinds = get_args(bare)
        if kinds[-1] is not Ellipsis:
            return "pair"
        return f"{'one or a list' if ListOrOne in marks else 'list'} of: {_kind(kinds[0])}"
    if bare in (int, float):
        word = "whole number" if bare is int else "number"
        return f"{word} {marks.get(Bounds, '')}".strip().replace(str(2**63 - 1), "2⁶³ - 1")
    return {bool: "true, false", str: "text"}[bare]
