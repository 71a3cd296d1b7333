"""Rows of cells as a table in text: for the terminal, in Markdown, in LaTeX."""

from collections.abc import Sequence

from tabulate import DataRow, Line, TableFormat, tabulate

Row = Sequence[str]


def _begin_tabular(_widths: Sequence[int], alignments: Sequence[str]) -> str:
    columns = "".join("l" if alignment == "left" else "r" for alignment in alignments)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule"


TERMINAL = "simple"
MARKDOWN = "pipe"
# tabulate's own latex_booktabs escapes cells, which would take the bold from a number.
LATEX = TableFormat(
    lineabove=_begin_tabular,
    linebelowheader=Line(r"\midrule", "", "", ""),
    linebetweenrows=None,
    linebelow=Line("\\bottomrule\n\\end{tabular}", "", "", ""),
    headerrow=DataRow("", " & ", r" \\"),
    datarow=DataRow("", " & ", r" \\"),
    padding=0,
    with_header_hide=None,
)


def draw(rows: Sequence[Row], left: int, form: str | TableFormat = TERMINAL) -> str:
    """Return rows, the first of which is the header, as a table in text.

    Args:
        rows: cells as they are to stand in the table; tabulate's `SEPARATING_LINE` in place of a row draws a line.
        left: how many columns are flush left; the others are flush right.
        form: `TERMINAL`, `MARKDOWN` or `LATEX` (package booktabs).

    """
    columns = len(rows[0])
    return tabulate(
        rows,
        headers="firstrow",
        tablefmt=form,
        colalign=["left"] * left + ["right"] * (columns - left),
        disable_numparse=True,
        preserve_whitespace=True,
    )
