"""What the fingerprint of a stage sees of its code."""

from __future__ import annotations

import pytest

from blast.experiment.records.provenance import code_text

CODE = '''
class Box(Base):
    """What it is."""

    side: int = 3

    def area(self, *, scale=None) -> str:
        """Of it."""
        # By the side.
        return f"{self.side ** 2 * scale:.1f}"
'''


def test_comments_blank_lines_and_docstrings_change_nothing():
    other = (
        CODE.replace("        # By the side.\n", "\n").replace("What it is.", "A box.").replace("Of it.", "Its area.")
    )
    assert other != CODE
    assert code_text(other) == code_text(CODE)


@pytest.mark.parametrize(
    ("before", "after"),
    [("= 3", "= 4"), ("** 2", "** 3"), (":.1f", ":.2f"), ("*, scale", "scale"), ("=None", "=[]"), ("(Base)", "()")],
)
def test_code_changes_it(before, after):
    assert code_text(CODE.replace(before, after)) != code_text(CODE)


def test_every_version_of_python_gives_the_same_text():
    """Written down from 3.11, 3.12 and 3.13, whose own dumps of a function differ."""
    assert code_text("def f(a, *b):\n    'Doc.'\n    return f'{a:.1f}', [], None, lambda: 0x10") == (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='a')],vararg=arg(arg='b')),"
        "body=[Expr(value=Constant(value='')),Return(value=Tuple(elts=[JoinedStr(values=[FormattedValue("
        "value=Name(id='a',ctx=Load()),conversion=-1,format_spec=JoinedStr(values=[Constant(value='.1f')]))]),"
        "List(ctx=Load()),Constant(),Lambda(args=arguments(),body=Constant(value=16))],ctx=Load()))])])"
    )
