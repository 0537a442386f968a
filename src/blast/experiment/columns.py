"""Lines of aligned columns, for what a verb prints."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: str = "  ") -> list[str]:
    """Rows of cells as lines; the cells of a column begin, or end, below each other.

    Args:
        rows: The cells; the first row may be a header. All rows are as long.
        right: Numbers of the columns whose cells end below each other, as numbers do.
        indent: Begin of each line.

    Example:
        >>> columns([["loss", "1.5"], ["accuracy", "12.25"]], right=[1])
        ['  loss        1.5', '  accuracy  12.25']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def counted(number: int, what: str, many: str | None = None) -> str:
    """A number with its noun: `1 point`, `2 points`.

    Args:
        number: How many.
        what: The noun for one.
        many: The noun for several; None adds an s.
    """
    return f"{number:,} {what if number == 1 else many or what + 's'}"
