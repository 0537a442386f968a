"""The JSON schema of a config file, with which editors complete keys; `config/schema.json` holds it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any, Literal, get_args, get_origin

from blast import datasets
from blast.benchmark.settings import SUITES
from blast.experiment.plan.config import Benchmark, Config, Evaluation, GridBlock
from blast.settings import (
    Bounds,
    ListOrOne,
    NotEmpty,
    OneOf,
    PartOf,
    Pattern,
    field_hints,
    is_union,
    plain,
    required,
    split_hint,
)
from blast.sparsity.config import SparsifyConfig
from blast.training.distillation import Distillation
from blast.training.settings import TrainingSettings

KEYWORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def schema() -> str:
    """The schema as text."""
    definitions: dict[str, Any] = {}
    whole = _settings(Config, definitions)
    kinds = [_part(kind, {}, definitions) for kind in _dataset_settings()]
    whole["properties"]["data"]["additionalProperties"] = {"anyOf": kinds}
    definitions[Benchmark.__name__]["allOf"] = [
        {
            "if": {"properties": {"suite": {"const": suite}}, "required": ["suite"]},
            "then": {"properties": {"settings": _part(kind, {}, definitions)}},
        }
        for suite, kind in SUITES.items()
    ]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **whole, "$defs": dict(sorted(definitions.items()))}, indent=2) + "\n"


def _dataset_settings() -> list[type]:
    return list(dict.fromkeys(type(datasets.get(name).SETTINGS) for name in datasets.names()))


def settings_classes() -> list[type]:
    """Every settings class that a config holds."""
    return [
        *(Config, Evaluation, GridBlock, Distillation, Benchmark, TrainingSettings, SparsifyConfig),
        *_dataset_settings(),
        *SUITES.values(),
    ]


def described_fields(settings: type) -> dict[str, str]:
    """The description of each field, from the `Attributes:` sections of the class and of those it inherits from."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
        for key, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE):
            found[key] = " ".join(text.split())
    return found


def _summary(settings: type) -> str:
    return " ".join(inspect.cleandoc(settings.__doc__ or "").partition("\n\n")[0].split())


def _settings(settings: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a settings class with all its keys."""
    needed = {"required": required(settings)} if required(settings) else {}
    return _object(settings, {}, definitions) | needed


def _object(settings: type, left_out: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    texts, properties = described_fields(settings), {}
    for field in dataclasses.fields(settings):
        if field.name in left_out:
            continue
        found = {"description": texts[field.name], **_value(field_hints(settings)[field.name], definitions)}
        if field.default is not dataclasses.MISSING:
            found["default"] = plain(field.default)
        properties[field.name] = found
    return {
        "type": "object",
        "description": _summary(settings),
        "properties": properties,
        "additionalProperties": False,
    }


def _part(settings: type, left_out: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema of a settings class, no key of which is required."""
    found = _object(settings, left_out, definitions)
    name = settings.__name__
    # The same class with other keys left out is a definition of its own.
    while definitions.setdefault(name, found) != found:
        name += "_"
    return {"$ref": f"#/$defs/{name}"}


def _value(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of what an annotation allows."""
    bare, marks = split_hint(hint)
    if PartOf in marks:
        return _part(marks[PartOf].settings, marks[PartOf].set_elsewhere, definitions)
    if is_union(bare):
        return {"anyOf": [_value(option, definitions) for option in get_args(bare)]}
    if dataclasses.is_dataclass(bare):
        definitions[bare.__name__] = _settings(bare, definitions)
        return {"$ref": f"#/$defs/{bare.__name__}"}
    origin = get_origin(bare)
    if origin is Literal:
        return {"enum": list(get_args(bare))}
    if origin is dict:
        entry = get_args(bare)[1]
        return {"type": "object"} | ({} if entry is Any else {"additionalProperties": _value(entry, definitions)})
    if origin in (list, tuple):
        return _list(bare, marks, definitions)
    found: dict[str, Any] = {"type": NAMES[bare]}
    if Bounds in marks:
        found |= {KEYWORDS[key]: bound for key, bound in vars(marks[Bounds]).items() if bound is not None}
    if NotEmpty in marks:
        found["minLength"] = 1
    if Pattern in marks:
        found |= {"pattern": f"^({marks[Pattern].regex})$", "maxLength": marks[Pattern].longest}
    if OneOf in marks:
        found = {"enum": list(marks[OneOf].names)}
    return found


def _list(bare: Any, marks: dict[type, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    kinds = get_args(bare)
    if get_origin(bare) is tuple and kinds[-1] is not Ellipsis:
        entries = [_value(kind, definitions) for kind in kinds]
        return {"type": "array", "prefixItems": entries, "minItems": len(kinds), "maxItems": len(kinds)}
    entry = _value(kinds[0], definitions)
    found = {"type": "array", "items": entry} | ({"minItems": 1} if NotEmpty in marks else {})
    return {"anyOf": [entry, found]} if ListOrOne in marks else found
