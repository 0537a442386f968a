"""Writes figures and tables to files. The same input gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from blast.files import write_atomically
from paper_figures.views._titles import DPI

_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "−": "$-$",
          "<": r"$<$", ">": r"$>$"}  # fmt: skip


# The column of a table with the command that runs the points of a row again; it is in the CSV file alone.
RERUN = "rerun"


def save_figure(figure: Figure, out_dir: Path, name: str) -> list[Path]:
    """Writes `name.pdf` (vector, TrueType fonts) and `name.png` (200 dpi). Each is renamed when complete.

    A figure with a label, such as "not run", has nothing to show; the PNG file has the label as its description.
    """
    written = []
    about = {"Description": figure.get_label()} if figure.get_label() else {}
    metadata = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None, **about}}
    with mpl.rc_context({"pdf.fonttype": 42, "savefig.dpi": DPI}):
        for kind in ("pdf", "png"):
            file = Path(out_dir, f"{name}.{kind}")
            # Into memory first: on a full disk, the PDF writer fails a second time, and names no disk.
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, metadata=metadata[kind])
            write_atomically(file, drawn.getvalue(), "draw it again")
            written.append(file)
    return written


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    # A cell is one line: a record may hold any text.
    return [
        ["" if pd.isna(value) else " ".join(str(value).splitlines()) for value in row]
        for row in frame.itertuples(index=False)
    ]


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown; empty cells stay empty."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in _cells(frame)]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return re.sub(r"[&%$#_{}~^\\±×–−<>]", lambda match: _LATEX[match.group()], text)


def latex(frame: pd.DataFrame, widths: dict[str, str] | None = None) -> str:
    r"""A LaTeX `tabular` with booktabs rules, for `\input` inside a table.

    Args:
        frame: Cells as printed.
        widths: Column types other than `l` by column, such as `p{4cm}`.
    """
    kinds = "".join((widths or {}).get(column, "l") for column in frame.columns)
    lines = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    lines += [" & ".join(map(_escape, frame.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_escape, row)) + r" \\" for row in _cells(frame)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def save_table(
    frame: pd.DataFrame,
    shown: pd.DataFrame,
    out_dir: Path,
    name: str,
    widths: dict | None = None,
    remarks: Sequence[str] = (),
) -> list[Path]:
    """Writes `name.csv` (all numbers in full), `name.md` and `name.tex` (as printed, below the remarks).

    Args:
        frame: Rows with numbers and text; with a column `RERUN`, the Markdown says where the commands are.
        shown: The same rows as printed.
        out_dir: Folder; created if missing.
        name: Name without suffix.
        widths: See `latex`.
        remarks: Sentences on top of the table.
    """
    texts = {
        "csv": frame.to_csv(index=False, lineterminator="\n"),
        "md": "".join(f"{remark}\n\n" for remark in remarks) + markdown(shown),
        "tex": "".join(rf"{_escape(remark)}\par" + "\n" for remark in remarks) + latex(shown, widths),
    }
    if RERUN in frame:
        texts["md"] += f"\nThe column `{RERUN}` of `{name}.csv` has the command that runs the points of a row again.\n"
    written = []
    for kind, text in texts.items():
        file = Path(out_dir, f"{name}.{kind}")
        write_atomically(file, text)
        written.append(file)
    return written
