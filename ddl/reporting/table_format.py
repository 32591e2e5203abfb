"""Format tables: frames of displayed cells, written as CSV, LaTeX and HTML.

A frame has one row per model. Up to four hidden columns control the layout: `block` is the heading of a group of rows,
`bold` and `underline` list the columns (separated by "; ") in which the row is best or second best, and `reason`
explains dashes. A column named "X ±" or "X range" is shown in the cell of X. Names of the form "Group: X" give a header
with two levels. paper/template.typ typesets the same CSV by the same rules.
"""

import html
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ddl.files import write_text

DASH = "–"
DETAILS = {" ±": "± {}", " range": "({})"}
HIDDEN = ("block", "bold", "underline", "reason")
REASONS_SHOWN = 3
MOST_DECIMALS = 4
WIDEST, WIDEST_FIRST = 9, 13  # characters of a line in a cell for LaTeX; in the first column


def cell(value: Any, digits: int | None = None) -> str:
    """Format a number with `digits` decimals (default: as is); keep text unchanged; a missing value is a dash."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return DASH
    if isinstance(value, str):
        return value
    return f"{value:.{digits}f}" if digits is not None else f"{value:g}" if isinstance(value, float) else str(value)


def decimals_for(uncertainty: float) -> int:
    """Decimals of a number with this uncertainty: up to the second significant digit of it if it starts with 1, 2 or 3.

    Otherwise up to the first. At least 0 and at most `MOST_DECIMALS`, with which the paper prints its losses.
    """
    if not math.isfinite(uncertainty):
        return 0
    if uncertainty <= 0:
        return MOST_DECIMALS
    return min(max(0, 1 - math.floor(math.log10(3 * uncertainty))), MOST_DECIMALS)


def significant(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits and no exponent; a missing value is a dash."""
    if pd.isna(value):
        return DASH
    decimals = digits - 1 - int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:.{max(decimals, 0)}f}"


def count(value: float, digits: int = 3) -> str:
    """Format a count with a unit, e.g. "1.05 M"; a missing value is a dash."""
    if pd.isna(value):
        return DASH
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if value >= size:
            return significant(value / size, digits) + unit
    return f"{value:.0f}"


def mark_best(frame: pd.DataFrame, columns: Iterable[str], *, lower: bool, second: bool) -> pd.DataFrame:
    """Set `bold` and `underline` for the best and second-best value of each column; equal printed values share a mark.

    Args:
        frame: rows to compare, with cells as text; dashes are ignored.
        lower: whether a lower value is better.
        second: whether to underline the second-best value.
    """
    marks: dict[str, list[list[str]]] = {mark: [[] for _ in range(len(frame))] for mark in ("bold", "underline")}
    for column in columns:
        values = pd.to_numeric(frame[column].replace(DASH, None)).tolist()
        ranked = sorted({value for value in values if not pd.isna(value)}, reverse=not lower)
        for row, value in enumerate(values):
            if ranked and value == ranked[0]:
                marks["bold"][row].append(column)
            elif second and len(ranked) > 1 and value == ranked[1]:
                marks["underline"][row].append(column)
    return frame.assign(**{mark: ["; ".join(names) for names in rows] for mark, rows in marks.items()})


@dataclass(frozen=True)
class WrittenTable:
    """A table that has been written; notebooks display it as HTML."""

    frame: pd.DataFrame
    caption: str
    note: str

    def _repr_html_(self) -> str:
        groups, columns = _header(self.frame)
        head = "".join(f'<th colspan="{span}">{html.escape(text)}</th>' for text, span in groups)
        lines = [f"<tr>{head}</tr>"] if head else []
        lines.append("<tr>" + "".join(f"<th>{html.escape(short)}</th>" for _, short in columns) + "</tr>")
        for block, cells in _rows(self.frame):
            if block:
                lines.append(f'<tr><td colspan="{len(columns)}"><i>{html.escape(block)}</i></td></tr>')
            lines.append("<tr>" + "".join(f"<td>{_html_cell(*parts)}</td>" for parts in cells) + "</tr>")
        notes = html.escape(" ".join(filter(None, [self.note, reasons(self.frame)])))
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        table = f'<table style="font-size: 0.78em">{caption}{"".join(lines)}</table>'
        return f"{table}<p><small>{notes}</small></p>"


def write_table(frame: pd.DataFrame, results: str | Path, name: str, caption: str, note: str = "") -> WrittenTable:
    """Write tables/<name>.csv and tables/<name>.tex (booktabs) under a results folder.

    Args:
        frame: visible columns and, optionally, `block`, `bold`, `underline` and `reason` (see the module docstring).
        name: e.g. "table3".
    """
    shown = frame.map(cell)
    folder = Path(results) / "tables"
    write_text(folder / f"{name}.csv", shown.to_csv(index=False, lineterminator="\n"))
    write_text(folder / f"{name}.tex", _latex(shown, name, caption, note))
    return WrittenTable(shown, caption, note)


def reasons(frame: pd.DataFrame) -> str:
    """One sentence with the first few reasons for dashes; empty if nothing is missing."""
    if "reason" not in frame:
        return ""
    found = list(dict.fromkeys(part for text in frame["reason"] for part in text.split("; ") if part))
    more = f"; and {len(found) - REASONS_SHOWN} more" if len(found) > REASONS_SHOWN else ""
    return f"{DASH}: {'; '.join(found[:REASONS_SHOWN])}{more}." if found else ""


def _header(frame: pd.DataFrame) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """Groups with their widths (empty for a one-level header), and (column, displayed text) for visible columns."""
    names = [name for name in map(str, frame.columns) if name not in HIDDEN and not name.endswith(tuple(DETAILS))]
    columns = [(name, name.split(": ", 1)[-1]) for name in names]
    if not any(": " in name for name in names):
        return [], columns
    groups: list[tuple[str, int]] = []
    for name in names:
        text = name.split(": ", 1)[0] if ": " in name else ""
        if groups and groups[-1][0] == text:
            groups[-1] = (text, groups[-1][1] + 1)
        else:
            groups.append((text, 1))
    return groups, columns


def _rows(frame: pd.DataFrame) -> Iterable[tuple[str, list[tuple[str, str, bool, bool]]]]:
    """Yield for each row the block that starts there ("" if none) and (text, detail, bold, underline) of each cell."""
    last = ""
    for _, row in frame.iterrows():
        block = row.get("block", "")
        marks = [row.get(mark, "").split("; ") for mark in ("bold", "underline")]
        cells = []
        for name, _ in _header(frame)[1]:
            detail = "".join(form.format(row[name + end]) for end, form in DETAILS.items() if row.get(name + end, ""))
            cells.append((row[name], detail if row[name] != DASH else "", name in marks[0], name in marks[1]))
        yield block if block != last else "", cells
        last = block


def _latex(frame: pd.DataFrame, name: str, caption: str, note: str) -> str:
    groups, columns = _header(frame)
    lines = [r"\begin{table*}", r"\centering", rf"\caption{{{_escape(caption)}}}", rf"\label{{tab:{name}}}"]
    lines += [
        r"\scriptsize\setlength{\tabcolsep}{1pt}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
    ]
    if groups:
        lines.append(" & ".join(rf"\multicolumn{{{span}}}{{c}}{{{_escape(text)}}}" for text, span in groups) + r" \\")
        ends = list(itertools.accumulate(span for _, span in groups))
        spans = zip(groups, ends, strict=True)
        lines.append("".join(rf"\cmidrule(lr){{{end - span + 1}-{end}}}" for (text, span), end in spans if text))
    lines += [" & ".join(_stacked(short) for _, short in columns) + r" \\", r"\midrule"]
    for index, (block, cells) in enumerate(_rows(frame)):
        if block:
            lines += [r"\midrule"] if index else []
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{_escape(block)}}}}} \\")
        shown = [_latex_cell(*parts, first=place == 0) for place, parts in enumerate(cells)]
        lines.append(" & ".join(shown) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = " ".join(filter(None, [note, reasons(frame)]))
    lines += [rf"\par\footnotesize {_escape(notes)}"] if notes else []
    return "\n".join([*lines, r"\end{table*}", ""])


def _latex_cell(text: str, detail: str, bold: bool, underline: bool, first: bool) -> str:
    shown = _stacked(text, "l", WIDEST_FIRST) if first else _stacked(text)
    shown = rf"\textbf{{{shown}}}" if bold else rf"\underline{{{shown}}}" if underline else shown
    if detail.startswith("("):  # an interval: below its value, because the columns are narrow
        return rf"\shortstack[r]{{{shown} \\ {{\tiny {_escape(detail.replace(' to ', ', '))}}}}}"
    return rf"{shown}\,{{\tiny {_escape(detail.replace(' ', ''))}}}" if detail else shown


def _stacked(text: str, align: str = "r", widest: int = WIDEST) -> str:
    """A cell for LaTeX; a long one in several lines, broken at blanks and after underscores."""
    lines: list[str] = []
    for part in re.findall(r"[^ _]*[ _]?", text):
        if lines and len(lines[-1]) + len(part.rstrip()) <= widest:
            lines[-1] += part
        elif part:
            lines.append(part)
    if len(lines) < 2:
        return _escape(text)
    stack = r" \\ ".join(_escape(line.rstrip()) for line in lines)
    return rf"\shortstack[{align}]{{{stack}}}"


def _html_cell(text: str, detail: str, bold: bool, underline: bool) -> str:
    shown = html.escape(text).replace("d_v", "d<sub>v</sub>").replace("_", "_<wbr>")
    shown = f"<b>{shown}</b>" if bold else f"<u>{shown}</u>" if underline else shown
    return f"{shown}<br><small>{html.escape(detail)}</small>" if detail else shown


def _escape(text: str) -> str:
    """Escape text for LaTeX; the symbols used in the tables become mathematics."""
    plain = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    plain |= {char: f"\\{char}" for char in "&%$#_{}"}
    plain |= {DASH: "--", "±": r"$\pm$", "×": r"$\times$", "β": r"$\beta$"}
    return "".join(plain.get(char, char) for char in text).replace(r"d\_v", "$d_v$")
