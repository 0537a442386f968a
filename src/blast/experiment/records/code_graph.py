"""The top-level definitions of Python packages, what each of them names, and their text without what changes nothing.

Nothing is imported: files are parsed. Comments, docstrings, import statements and file names are no part of the text,
and a name is written by what it means, not by how it was imported. Type annotations are text but are not followed.
Where a name cannot be resolved, its whole module counts: a module that is used as a value, `import *`.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

# Counts a definition, or not; the flag says whether an optional import (`try: … except ImportError`) leads to it.
Counts = Callable[["Name", bool], bool]


class Name(NamedTuple):
    """A top-level name of a module; `*` means everything in it, `` its statements that define nothing."""

    module: str
    name: str


class Import(NamedTuple):
    """What an import binds: a name of a module, or the module itself (`name` is None)."""

    module: str
    name: str | None
    optional: bool = False


@dataclass
class Module:
    """The top level of one file."""

    name: str
    file: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, Import] = field(default_factory=dict)
    # Under `if TYPE_CHECKING`: for annotations, and for the names of a package that imports them when they are used.
    typing: dict[str, Import] = field(default_factory=dict)
    # Modules that are loaded with this one.
    loads: list[Import] = field(default_factory=list)
    has_file: bool = False

    def read(self, body: Iterable[ast.stmt], optional: bool = False, typing: bool = False) -> None:
        """Sorts statements into definitions, imports and effects."""
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound, loads = imports_of(node, self.name, self.file.name == "__init__.py", optional)
                (self.typing if typing else self.imports).update(bound)
                self.loads += [] if typing else loads
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                # `@operator.register_fake` makes the function a part of the operator.
                owners = {_root(part.func if isinstance(part, ast.Call) else part) for part in node.decorator_list}
                for name in {node.name, *(owners & set(self.definitions))}:
                    self.definitions.setdefault(name, []).append(node)
            elif isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
                continue  # not run by an import
            elif isinstance(node, ast.If):
                typing_only = typing or "TYPE_CHECKING" in ast.dump(node.test)
                self.read([*([] if typing_only else [ast.Expr(node.test)]), *node.body], optional, typing_only)
                self.read(node.orelse, optional, typing)
            elif isinstance(node, ast.Try):
                caught = any("ImportError" in ast.dump(handler.type) for handler in node.handlers if handler.type)
                self.read(node.body, optional or caught, typing)
                for handler in node.handlers:
                    # `triton = None` where the import failed is not another definition of it.
                    self.read([part for part in handler.body if not _assigned(part) & set(self.imports)], optional)
                self.read([*node.orelse, *node.finalbody], optional, typing)
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                owners = _assigned(node)
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    owners = {_root(node.value.func)} & set(self.definitions)  # `operator.register_autograd(…)`
                for name in owners:
                    self.definitions.setdefault(name, []).append(node)
                if not owners:
                    self.effects.append(node)


def _root(node: ast.AST) -> str | None:
    """`a` of `a.b[0].c`; None where the name alone is meant, or there is none."""
    inner = node
    while isinstance(inner, ast.Attribute | ast.Subscript):
        inner = inner.value
    return inner.id if isinstance(inner, ast.Name) and inner is not node else None


def _assigned(node: ast.stmt) -> set[str]:
    """Names that a statement at the top level gives a value, wholly or in part."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return {part.id if isinstance(part, ast.Name) else _root(part) or "" for part in parts} - {""}


def imports_of(
    node: ast.Import | ast.ImportFrom, module: str, package: bool = False, optional: bool = False
) -> tuple[dict[str, Import], list[Import]]:
    """What an import statement binds, and what it loads."""
    if isinstance(node, ast.Import):
        bound = {
            alias.asname or alias.name.partition(".")[0]: Import(
                alias.name if alias.asname else alias.name.partition(".")[0], None, optional
            )
            for alias in node.names
        }
        return bound, [Import(alias.name, None, optional) for alias in node.names]
    origin = node.module or ""
    if node.level:
        parents = module.split(".") + (["", ""] if package else [""])
        origin = ".".join([*parents[: -node.level - 1], *([origin] if origin else [])])
    bound = {alias.asname or alias.name: Import(origin, alias.name, optional) for alias in node.names}
    if star := bound.pop("*", None):
        return bound, [star]
    return bound, [Import(origin, alias.name, optional) for alias in node.names]


@dataclass
class Text:
    """One definition: its text without what changes nothing, and what it names."""

    text: str = ""
    names: list[tuple[Name, bool]] = field(default_factory=list)  # and whether by an optional import
    attributes: set[str] = field(default_factory=set)
    data: list[Path] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)


class CodeGraph:
    """The definitions of some packages and what each of them names.

    Args:
        roots: Folder of each package, by its import name.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = {name: Path(folder).resolve() for name, folder in roots.items()}
        self._modules: dict[str, Module | None] = {}
        self._texts: dict[Name, Text] = {}

    def module(self, name: str) -> Module | None:
        """A module of ours; None if there is none of that name."""
        if name not in self._modules:
            package, *parts = name.split(".")
            self._modules[name] = None
            if package in self.roots:
                place = self.roots[package].joinpath(*parts)
                file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                if file.is_file():
                    text = file.read_text()
                    self._modules[name] = made = Module(name, file, has_file="__file__" in text)
                    made.read(ast.parse(text).body)
        return self._modules[name]

    @cached_property
    def operators(self) -> dict[str, Name]:
        """The definition of each `torch.ops.<namespace>.<name>`, by `<namespace>.<name>`."""
        found = {}
        for package, root in self.roots.items():
            for file in sorted(root.rglob("*.py")):
                if "custom_op" in (text := file.read_text()):
                    module = ".".join([package, *file.relative_to(root).with_suffix("").parts])
                    for match in re.finditer(r'custom_op\(\s*"(\w+)::(\w+)".*?\ndef (\w+)', text, re.DOTALL):
                        found[f"{match[1]}.{match[2]}"] = Name(module, match[3])
        return found

    def find(self, module: str, path: Sequence[str], typing: bool = True) -> tuple[Name | None, list[str], bool]:
        """What a dotted path within a module means.

        Returns:
            The definition (`*` for the module itself; None if it is not ours), the rest of the path, and whether an
            optional import lies between.
        """
        here = self.module(module)
        if here is None:
            return None, [module, *path], False
        if not path:
            return Name(module, "*"), [], False
        head, *rest = path
        bound = here.imports.get(head) or (here.typing.get(head) if typing else None)
        if bound:
            target, rest, optional = self.find(bound.module, [*([bound.name] if bound.name else []), *rest])
            return target, rest, optional or bound.optional
        if head in here.definitions:
            return Name(module, head), rest, False
        if self.module(f"{module}.{head}"):
            return self.find(f"{module}.{head}", rest)
        dynamic = "__getattr__" in here.definitions or any(load.name == "*" for load in here.loads)
        return Name(module, "*" if dynamic else ""), [head, *rest], False

    def text(self, name: Name) -> Text:
        """One definition; of `*` all of its module."""
        if name not in self._texts:
            module = self.module(name.module)
            made = Text()
            if module is not None and name.name == "*":
                made.names = [(Name(name.module, other), False) for other in module.definitions]
            elif module is not None:
                body = module.effects if name.name == "" else module.definitions.get(name.name, [])
                made.text = ",".join(_Writer(self, module, made).write(node) for node in body)
                if name.name == "":
                    for load in module.loads:
                        made.names += self.loaded(load)
                else:
                    made.names.append((Name(name.module, ""), False))
            self._texts[name] = made
        return self._texts[name]

    def loaded(self, load: Import) -> list[tuple[Name, bool]]:
        """The modules that an import runs, the packages around them included."""
        inner = f"{load.module}.{load.name}" if load.name else load.module
        module = inner if self.module(inner) else load.module
        if self.module(module) is None:
            return []
        parts = module.split(".")
        found = [Name(".".join(parts[:end]), "") for end in range(1, len(parts) + 1)]
        return [(name, load.optional) for name in (*found, *([Name(module, "*")] if load.name == "*" else []))]

    def reached(
        self, entries: Iterable[Name], by_name: Iterable[str] = (), counts: Counts = lambda name, optional: True
    ) -> set[Name]:
        """Every definition that some entries reach.

        Args:
            entries: Where to begin.
            by_name: Modules found by name; their definitions count as far as an attribute of that name is asked for.
            counts: Whether to follow a name.

        Raises:
            LookupError: if an entry is not defined: a digest without it would miss its code in silence.
        """
        found: set[Name] = set()
        attributes: set[str] = set()
        waiting = list(entries)
        if missing := [name for name in waiting if not self.text(name).text]:
            raise LookupError(f"the code has no {', '.join(f'{name.module}.{name.name}' for name in missing)}")
        while waiting:
            while waiting:
                name = waiting.pop()
                if name in found:
                    continue
                found.add(name)
                text = self.text(name)
                attributes |= text.attributes
                waiting += [other for other, optional in text.names if counts(other, optional)]
            for module in by_name:
                here = self.module(module)
                asked = [Name(module, name) for name in (here.definitions if here else ()) if name in attributes]
                waiting += [name for name in asked if name not in found]
        return found

    def digests(self, names: Iterable[Name]) -> dict[str, str]:
        """By module, or by path of a data file, a short digest of what some definitions take from it."""
        texts: dict[str, set[bytes]] = {}
        for name in names:
            text = self.text(name)
            if text.text:
                texts.setdefault(name.module, set()).add(f"{name.name}\0{text.text}".encode())
            for file in text.data:
                texts[self._label(file)] = {file.read_bytes()}
        return {
            module: hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in sorted(parts))).hexdigest()[:12]
            for module, parts in sorted(texts.items())
        }

    def _label(self, file: Path) -> str:
        roots = [(package, root) for package, root in self.roots.items() if file.is_relative_to(root)]
        return next((f"{package}/{file.relative_to(root).as_posix()}" for package, root in roots), file.name)

    def digest(self, names: Iterable[Name], files: Iterable[Path] = ()) -> str:
        """Digest of definitions, of the data files that they name, and of more files."""
        texts = [(name, self.text(name)) for name in names]
        items = {f"{name.name}\0{text.text}".encode() for name, text in texts if text.text}
        for file in {*files, *(file for _, text in texts for file in text.data)}:
            items.add(file.name.encode() + b"\0" + file.read_bytes())
        sha = hashlib.sha256()
        for item in sorted(items):
            sha.update(hashlib.sha256(item).digest())
        return "sha256:" + sha.hexdigest()


class _Writer:
    """Writes a definition as text that is the same in every version of Python, and notes what it names."""

    def __init__(self, code: CodeGraph, module: Module, out: Text) -> None:
        self._code, self._module, self._out = code, module, out
        self._local: dict[str, Import] = {}

    def write(self, stmt: ast.stmt) -> str:
        """The text of a top-level statement."""
        for node in ast.walk(stmt):
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound, loads = imports_of(node, self._module.name, self._module.file.name == "__init__.py")
                self._local |= bound
                for load in loads:
                    self._out.names += self._code.loaded(load)
        return self._plain(stmt, True)

    def _plain(self, node: object, follow: bool) -> str:
        if isinstance(node, list):
            parts = [self._plain(part, follow) for part in node if not _changes_nothing(part)]
            return f"[{','.join(parts)}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            path = _path(node)
            if path:
                return self._reference(path, follow)
            self._out.attributes.add(node.attr)
        match node:
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]):
                self._out.attributes.add(name)
        if follow and self._module.has_file and (place := _place(node, self._module.file)) is not None:
            self._out.data += _data_files(place, self._code.roots.values())
        # Fields that are empty are new ones, as far as versions of Python differ.
        fields = (
            f"{name}={self._plain(value, follow and name not in ('annotation', 'returns'))}"
            for name, value in ast.iter_fields(node)
            if value not in (None, []) and name != "ctx"
        )
        return f"{type(node).__name__}({','.join(fields)})"

    def _reference(self, path: list[str], follow: bool) -> str:
        """A dotted name, written by what it means rather than by how it was imported."""
        self._out.attributes.update(path[1:])
        module, head = self._module, path[0]
        bound = self._local.get(head)
        if bound:
            target, rest, optional = self._code.find(bound.module, [*([bound.name] if bound.name else []), *path[1:]])
            optional = optional or bound.optional
        elif head in module.imports or head in module.definitions or head in module.typing:
            target, rest, optional = self._code.find(module.name, path, typing=not follow)
        else:
            return f"Name({'.'.join(path)})"
        if target is None:
            if rest[:2] == ["torch", "ops"] and (operator := self._code.operators.get(".".join(rest[2:4]))):
                self._out.names.append((operator, False))
            return f"Name({'.'.join(rest)})"
        if follow:
            self._out.names.append((target, optional))
        return f"Name({'.'.join([target.name, *rest])})"


def _changes_nothing(node: object) -> bool:
    """Docstrings and import statements."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _path(node: ast.AST) -> list[str]:
    """`["a", "b", "c"]` of `a.b.c`; empty if it is no such chain."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [*parts, node.id][::-1] if isinstance(node, ast.Name) else []


def _place(node: ast.AST, file: Path) -> Path | None:
    """The path that an expression such as `Path(__file__).resolve().parents[1] / "tuned"` means."""
    match node:
        case ast.Call(func=ast.Name(id="Path"), args=[ast.Name(id="__file__")]):
            return file
        case ast.Call(func=ast.Attribute(value=inner, attr="resolve" | "absolute")):
            return _place(inner, file)
        case ast.Attribute(value=inner, attr="parent"):
            return place.parent if (place := _place(inner, file)) else None
        case ast.Subscript(value=ast.Attribute(value=inner, attr="parents"), slice=ast.Constant(value=int(number))):
            return place.parents[number] if (place := _place(inner, file)) else None
        case ast.BinOp(left=inner, op=ast.Div(), right=ast.Constant(value=str(part))):
            return place / part if (place := _place(inner, file)) else None
    return None


def _data_files(place: Path, roots: Iterable[Path]) -> list[Path]:
    """The data files at a place within a package: what is not Python."""
    if not any(place.is_relative_to(root) and place != root for root in roots):
        return []
    files = place.rglob("*") if place.is_dir() else [place]
    return [file for file in files if file.is_file() and file.suffix not in (".py", ".pyc")]
