"""What the text of a definition leaves out, and which definitions it names; on small packages of invented code."""

from __future__ import annotations

import pytest

from blast.experiment.records.code_graph import CodeGraph, Name

CODE = '''
class Box(Base):
    """What it is."""

    side: int = 3

    def area(self, *, scale=None) -> str:
        """Of it."""
        # By the side.
        return f"{self.side ** 2 * scale:.1f}"
'''


@pytest.fixture
def reach(tmp_path):
    """Writes modules of a package `p`, and gives what its `main.run` reaches, as `module.name`."""

    def reach(files: dict[str, str], **options) -> set[str]:
        for file, text in {"__init__.py": "", **files}.items():
            (tmp_path / "p" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "p" / file).write_text(text)
        graph = CodeGraph({"p": tmp_path / "p"})
        found = graph.reached([Name("p.main", "run")], **options)
        return {f"{name.module.removeprefix('p.')}.{name.name}" for name in found if name.name not in ("", "*")}

    return reach


@pytest.fixture
def text(tmp_path):
    """The text of the first definition of some code."""

    def text(code: str) -> str:
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / "m.py").write_text(code)
        graph = CodeGraph({"p": tmp_path / "p"})
        return graph.text(Name("p.m", next(iter(graph.module("p.m").definitions)))).text

    return text


def test_comments_blank_lines_and_docstrings_change_nothing(text):
    other = CODE.replace("        # By the side.\n", "\n").replace("What it is.", "A box.")
    other = other.replace('        """Of it."""\n', "")
    assert other != CODE
    assert text(other) == text(CODE)


@pytest.mark.parametrize(
    ("before", "after"),
    [("= 3", "= 4"), ("** 2", "** 3"), (":.1f", ":.2f"), ("*, scale", "scale"), ("=None", "=[]"), ("(Base)", "()")],
)
def test_code_changes_it(text, before, after):
    assert text(CODE.replace(before, after)) != text(CODE)


def test_every_version_of_python_gives_the_same_text(text):
    """Written down from 3.11, 3.12 and 3.13, whose own dumps of a function differ."""
    assert text("def f(a, *b):\n    'Doc.'\n    return f'{a:.1f}', [], None, lambda: 0x10, a[0].x") == (
        "FunctionDef(name='f',args=arguments(args=[arg(arg='a')],vararg=arg(arg='b')),body=[Return(value=Tuple(elts=["
        "JoinedStr(values=[FormattedValue(value=Name(a),conversion=-1,format_spec=JoinedStr(values=["
        "Constant(value='.1f')]))]),List(),Constant(),Lambda(args=arguments(),body=Constant(value=16)),"
        "Attribute(value=Subscript(value=Name(a),slice=Constant(value=0)),attr='x')]))])"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import numpy as np\ndef f():\n    return np.sqrt(2)", "import numpy\ndef f():\n    return numpy.sqrt(2)"),
        (
            "import numpy as np\ndef f():\n    return np.sqrt(2)",
            "def f():\n    from numpy import sqrt\n    return sqrt(2)",
        ),
    ],
)
def test_how_a_name_is_imported_changes_nothing(text, before, after):
    assert text(before) == text(after)


def test_another_package_of_the_same_name_changes_it(text):
    assert text("from math import sqrt\ndef f():\n    return sqrt(2)") != text(
        "from cmath import sqrt\ndef f():\n    return sqrt(2)"
    )


def test_names_are_followed_through_modules_packages_aliases_and_lazy_imports(reach):
    main = """
from __future__ import annotations
from p import tools
from p.tools import deep as d, unused
from .near import here
LIMIT = 3
def run(box: unused) -> unused:
    from p.lazy import late
    return tools.first(LIMIT) + d.second() + late() + here
"""
    files = {
        "main.py": main,
        "near.py": "here = 1\nthere = 2",
        "lazy.py": "def late():\n    return 0\ndef never():\n    return 1",
        "tools/__init__.py": "def first(n):\n    return n\ndef unused():\n    return 0",
        "tools/deep.py": "from p.tools import first\ndef second():\n    return third()\nthird = first",
    }
    assert reach(files) == {
        "main.run", "main.LIMIT", "tools.first", "tools.deep.second", "tools.deep.third", "lazy.late", "near.here"
    }  # fmt: skip


def test_a_module_used_as_a_value_counts_whole_and_so_does_import_star(reach):
    other = "def a():\n    return 0\ndef b():\n    return 1"
    value = "from p import one, two\ndef run(x):\n    module = one if x else two\n    return module.a()"
    assert reach({"main.py": value, "one.py": other, "two.py": other}) == {
        "main.run", "one.a", "one.b", "two.a", "two.b"
    }  # fmt: skip
    star = "from p.one import *\ndef run(x):\n    return a()"
    assert reach({"main.py": star}) == {"main.run", "one.a", "one.b"}


def test_of_a_module_found_by_name_counts_what_the_code_asks_for(reach):
    files = {
        "main.py": "def run(module):\n    return module.load(getattr(module, 'SIZE'))",
        "one.py": "SIZE = 1\nTITLE = 2\ndef load(n):\n    return inner\ninner = 3\ndef show():\n    ...",
    }
    assert reach(files, by_name=["p.one"]) == {"main.run", "one.SIZE", "one.load", "one.inner"}


def test_statements_that_run_with_an_import_count_and_registrations_belong_to_what_they_register(reach):
    files = {
        "main.py": "import p.ops\nimport torch\ndef run(x):\n    return torch.ops.p.double(x)",
        "ops.py": """
import torch
from p.switches import turn_on
turn_on()
@torch.library.custom_op("p::double", mutates_args=())
def double(x):
    return 2 * x
@double.register_fake
def _(x):
    return empty(x)
def empty(x):
    return x
def back(x):
    return x
double.register_autograd(back)
@torch.library.custom_op("p::triple", mutates_args=())
def triple(x):
    return 3 * x
""",
        "switches.py": "def turn_on():\n    return 1\ndef turn_off():\n    return 0",
    }
    assert reach(files) == {"main.run", "ops.double", "ops.empty", "ops.back", "switches.turn_on"}


def test_optional_imports_and_what_is_imported_for_types_are_told_apart(reach):
    files = {
        "main.py": """
from typing import TYPE_CHECKING
from p.plain import slow
try:
    from p.quick import fast
except ImportError:
    fast = None
if TYPE_CHECKING:
    from p.types import Kind
def run(x: Kind):
    return fast(x) if fast else slow(x)
if __name__ == "__main__":
    other()
""",
        "plain.py": "from p.switches import turn_on\nturn_on()\ndef slow(x):\n    return x",
        "switches.py": "def turn_on():\n    return 1",
        "quick.py": "def fast(x):\n    return inner(x)\ndef inner(x):\n    return x",
        "types.py": "class Kind:\n    ...",
    }
    needed = {"main.run", "plain.slow", "switches.turn_on"}
    assert reach(files) == needed | {"quick.fast", "quick.inner"}
    assert reach(files, counts=lambda name, optional: not optional) == needed


def test_a_module_that_makes_its_names_as_they_are_asked_for_counts_whole(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text("")
    graph = CodeGraph({"p": tmp_path / "p"})
    for file, text in {
        "made.py": "def __getattr__(name): ...", "taken.py": "from p.made import *", "plain.py": "x = 1",
    }.items():  # fmt: skip
        (tmp_path / "p" / file).write_text(text)
    found = {name: graph.find(f"p.{name}", ["unknown"])[0].name for name in ("made", "taken", "plain")}
    assert found == {"made": "*", "taken": "*", "plain": ""}


def test_a_package_that_imports_its_names_when_they_are_used_gives_those_that_are_named(reach):
    files = {
        "__init__.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from p.one import a, b
def __getattr__(name):
    return name
""",
        "main.py": "import p\ndef run():\n    return p.a()",
        "one.py": "def a():\n    return 0\ndef b():\n    return 1",
    }
    assert reach(files) == {"main.run", "one.a"}


def test_data_files_of_a_package_count_where_their_folder_is_named(tmp_path):
    (tmp_path / "p" / "tables").mkdir(parents=True)
    (tmp_path / "p" / "m.py").write_text(
        "from pathlib import Path\nTABLES = Path(__file__).resolve().parent / 'tables'\n"
        "ROOT = Path(__file__).parents[1]\ndef f():\n    return ROOT\ndef g():\n    return TABLES\n"
    )
    table = tmp_path / "p" / "tables" / "a.json"

    def digest(name: str) -> str:
        graph = CodeGraph({"p": tmp_path / "p"})
        return graph.digest(graph.reached([Name("p.m", name)]))

    table.write_text("1")
    before = digest("f"), digest("g")
    table.write_text("2")
    assert digest("f") == before[0]
    assert digest("g") != before[1]
