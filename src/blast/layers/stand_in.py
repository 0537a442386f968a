"""A module that takes the place of another and is still found as the class that it was.

Code that looks into a model asks for the class of a module (`isinstance`), for its attributes, or for the parts of a
Sequential by their place. All that works on a stand-in as on the module it replaces.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any

from torch import nn


@cache
def stand_in_class(kind: Any, replaced: Any) -> Any:
    """A subclass of `kind` that is also one of `replaced`, with the name of `kind`.

    Its instances hold the replaced module as `original`, and share its children. Methods of `replaced` work on these;
    attributes that an instance lacks are those of `original`.

    Args:
        kind: What the module does now.
        replaced: The class of the module that it stands in for.
    """

    def fill(namespace: dict[str, Any]) -> None:
        namespace |= {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        namespace |= {"__getattr__": _attribute, "__setattr__": _set_attribute, "__reduce_ex__": _reduce}
        namespace |= {"_stands_in": (kind, replaced)}
        if issubclass(replaced, nn.Sequential):
            namespace["__getitem__"] = _part

    return types.new_class(kind.__name__, (kind, replaced), exec_body=fill)


def _attribute(module: nn.Module, name: str) -> Any:
    try:
        return nn.Module.__getattr__(module, name)
    except AttributeError:
        original = module.__dict__.get("original")
        if original is None:
            raise
        return getattr(original, name)


def _set_attribute(module: nn.Module, name: str, value: Any) -> None:
    nn.Module.__setattr__(module, name, value)
    original = module.__dict__.get("original")
    # An option of the original, which its forward reads.
    if original is not None and name in original.__dict__ and name in module.__dict__ and not name.startswith("_"):
        object.__setattr__(original, name, value)


def _part(module: nn.Module, place: int | slice) -> Any:
    # A slice is a new Sequential, not a new stand-in.
    return module.original[place]  # type: ignore[index]


def _reduce(module: nn.Module, protocol: object) -> tuple[Any, ...]:
    # `pickle` cannot find a class that was made at run time.
    return _rebuilt, type(module)._stands_in, module.__dict__  # type: ignore[attr-defined]


def _rebuilt(kind: Any, replaced: Any) -> nn.Module:
    made: nn.Module = object.__new__(stand_in_class(kind, replaced))
    return made
