"""The tables: frames of cells as a reader sees them, and their CSV, LaTeX and HTML.

A frame holds one row a model and, beside its visible columns, up to four that say how to show it: `block` starts a
headed group of rows, `bold` and `underline` list the columns (separated by "; ") in which the row is best or second,
`reason` says why a cell is a dash. A column named "X ±" or "X range" is shown in the cell of X; names of the form
"Group: X" give a header of two levels. The PDF is set from the same CSV by the same rules (paper/template.typ).
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ddl.provenance import write_text
from ddl.results import (
    BASELINE,
    COST_NUMBERS,
    Record,
    Results,
    by_key,
    gpu_cost,
    over_seeds,
    published,
)

DASH = "–"
DETAILS = {" ±": "± {}", " range": "({})"}
HIDDEN = ("block", "bold", "underline", "reason")
REASONS_SHOWN = 3


def cell(value: Any, digits: int | None = None) -> str:
    """A number with `digits` decimals (or as it is), text unchanged, a dash for a missing value."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return DASH
    if isinstance(value, str):
        return value
    return f"{value:.{digits}f}" if digits is not None else f"{value:g}" if isinstance(value, float) else str(value)


def significant(value: float, digits: int = 3) -> str:
    """A number to `digits` significant digits without an exponent, a dash for a missing value."""
    if pd.isna(value):
        return DASH
    decimals = digits - 1 - int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:.{max(decimals, 0)}f}"


def count(value: float, digits: int = 3) -> str:
    """A count with its unit, e.g. "1.05 M", a dash for a missing value."""
    if pd.isna(value):
        return DASH
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if value >= size:
            return significant(value / size, digits) + unit
    return f"{value:.0f}"


def mark_best(frame: pd.DataFrame, columns: Iterable[str], *, lower: bool, second: bool) -> pd.DataFrame:
    """Write `bold` and `underline`: best and second-best value of each column, as printed, so that ties share a mark.

    Args:
        frame: rows to compare, cells as text; a dash takes no part.
        lower: whether a lower value is better.
        second: whether the second-best value is underlined.
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


def loss_table(results: Results) -> pd.DataFrame:
    """Table 3: validation loss and perplexity at both sizes, ours beside the published ones."""
    validation, paper = results.validation(), by_key(published("validation_loss"), "size", "variant")
    quantities = {"val_loss": "loss", "val_perplexity": "perplexity"}
    measured = {value: over_seeds(validation, value) for value in quantities}
    rows = []
    for slug, variant in results.variants.items():
        ours, theirs, missing = {}, {}, []
        for size in results.sizes:
            for value, title in quantities.items():
                run, column = measured[value][size, slug], f"{size.capitalize()} valid {title}"
                name = f"Ours ({results.scale_phrase}): {column}"
                ours[name] = cell(run.mean, 4)
                if len(results.scale.seeds) > 1:
                    ours[f"{name} ±"] = cell(run.sd, 4)
                theirs[f"Published: {column}"] = cell(paper.get((size, slug), {}).get(value), 4)
                missing += [run.reason, "" if (size, slug) in paper else "not in the paper"]
        reason = "; ".join(dict.fromkeys(filter(None, missing)))
        rows.append({"Model": variant.label, **ours, **theirs, "reason": reason})
    columns = [name for name in rows[0] if ": " in name and not name.endswith(" ±")]
    return mark_best(pd.DataFrame(rows), columns, lower=True, second=False)


def cost_table(results: Results, size: str) -> pd.DataFrame:
    """Tables 4, 5: parameters, quality, throughput with its ratio to the baseline, and peak memory.

    Three blocks: the runs of this scale, the paper's shapes on a GPU (`gpu_cost`), and the published values.
    """
    cost = by_key(results.cost(), "size", "variant")
    loss = over_seeds(results.validation(), "val_loss")
    one_shot = results.downstream(1)
    average = over_seeds(one_shot[one_shot["column"] == "Avg."], "value")
    devices = [row["device"] for row in cost.values() if isinstance(row.get("device"), str)]
    block = f"Ours ({results.scale_phrase}, {devices[0] if devices else 'not measured'})"
    rows = []
    for slug, variant in results.variants.items():
        key = (size, slug)
        row = {"block": block, "Model": variant.label, "Params": count(cost[key]["params"])}
        row |= {"Val loss": cell(loss[key].mean, 4), "Avg eval": cell(100 * average[key].mean, 2)}
        row |= _measured_cost(cost[key], slug)
        texts = dict.fromkeys([cost[key]["reason"], loss[key].reason, average[key].reason])
        rows.append({**row, "reason": "; ".join(text for text in texts if text)})
    return pd.DataFrame(rows + _gpu_cost(results, size) + _published_cost(results, size)).fillna("")


def _gpu_cost(results: Results, size: str) -> list[Record]:
    """The rows of what was measured on a GPU with fresh weights; one row of dashes if there is none."""
    measured = gpu_cost(size)
    nothing: Record = dict.fromkeys(COST_NUMBERS, float("nan"))
    if not measured:
        models = {"All designs": (BASELINE, nothing | {"reason": "benchmarks/gpu.py has not been run on a GPU yet"})}
    else:
        nothing |= {"reason": "not in the GPU run that is kept"}
        models = {variant.label: (slug, measured.get(slug, nothing)) for slug, variant in results.variants.items()}
    device = measured[BASELINE]["device"] if measured else "GPU"
    rows = []
    for label, (slug, cost) in models.items():
        row = {"block": f"Ours (the paper's shapes, {device})", "Model": label, "Params": count(cost["params"], 4)}
        row |= {"Val loss": DASH, "Avg eval": DASH, **_measured_cost(cost, slug)}
        rows.append({**row, "reason": cost["reason"] or "speed is measured with fresh weights"})
    return rows


def _measured_cost(cost: Record, slug: str) -> dict[str, str]:
    """The columns of speed and memory."""
    row = _speed("train", cost, slug) | _speed("inference", cost, slug)
    row["Peak memory (GB)"] = significant(cost["peak_mem_bytes"] / 1e9)
    row["Peak-memory factor"] = cell(cost["peak_mem_factor"], 2)
    return row


def _speed(kind: str, cost: Record, slug: str) -> dict[str, str]:
    """Throughput, its ratio to the baseline and the spread of the ratio (none for the baseline itself)."""
    low, high = (cell(cost[f"{kind}_ratio_{part}"], 2) for part in ("p20", "p80"))
    spread = "" if slug == BASELINE or DASH in (low, high) else f"{low}{DASH}{high}"
    return {
        f"{kind.capitalize()} tok/s (K)": significant(cost[f"{kind}_tok_per_s_median"] / 1e3, 4),
        f"{kind.capitalize()} ratio": cell(cost[f"{kind}_ratio_median"], 2),
        f"{kind.capitalize()} ratio range": spread,
    }


def _published_cost(results: Results, size: str) -> list[dict[str, str]]:
    paper = by_key(published("cost"), "size", "variant")
    rows = []
    for slug, variant in results.variants.items():
        theirs = paper.get((size, slug), dict.fromkeys(paper[size, BASELINE], None))
        row = {"block": "Published (paper scale)", "Model": variant.label, "Params": cell(theirs["params"])}
        row |= {"Val loss": cell(theirs["val_loss"], 4), "Avg eval": cell(theirs["avg_1shot_percent"], 2)}
        for kind in ("train", "inference"):
            speed, reference = theirs[f"{kind}_ktok_per_s"], paper[size, BASELINE][f"{kind}_ktok_per_s"]
            row[f"{kind.capitalize()} tok/s (K)"] = cell(speed, 1)
            row[f"{kind.capitalize()} ratio"] = cell(speed and speed / reference, 2)
        row["Peak memory (GB)"] = cell(theirs["peak_memory_gb"], 2)
        row["Peak-memory factor"] = cell(theirs["peak_memory_factor"], 2)
        reason = "" if (size, slug) in paper else f"the paper's cost table for {size} models has no such row"
        rows.append({**row, "reason": reason})
    return rows


@dataclass(frozen=True)
class WrittenTable:
    """A table as it was written; a notebook shows it as HTML."""

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
        frame: visible columns and, optionally, `block`, `bold`, `underline`, `reason` (see the module's docstring).
        name: e.g. "table3".
    """
    shown = frame.map(cell)
    folder = Path(results) / "tables"
    write_text(folder / f"{name}.csv", shown.to_csv(index=False, lineterminator="\n"))
    write_text(folder / f"{name}.tex", _latex(shown, name, caption, note))
    return WrittenTable(shown, caption, note)


def reasons(frame: pd.DataFrame) -> str:
    """The reasons behind the dashes as one sentence, the first few in full; empty if nothing is missing."""
    if "reason" not in frame:
        return ""
    found = list(dict.fromkeys(part for text in frame["reason"] for part in text.split("; ") if part))
    more = f"; and {len(found) - REASONS_SHOWN} more" if len(found) > REASONS_SHOWN else ""
    return f"{DASH}: {'; '.join(found[:REASONS_SHOWN])}{more}." if found else ""


def _header(frame: pd.DataFrame) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """The groups with their widths (none for a header of one level), and (column, text shown) of visible columns."""
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
    """For each row: the block that starts there ("" if none), and (text, detail, bold, underline) of each cell."""
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
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule"]
    if groups:
        lines.append(" & ".join(rf"\multicolumn{{{span}}}{{c}}{{{_escape(text)}}}" for text, span in groups) + r" \\")
    lines += [" & ".join(_escape(short) for _, short in columns) + r" \\", r"\midrule"]
    for index, (block, cells) in enumerate(_rows(frame)):
        if block:
            lines += [r"\midrule"] if index else []
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{_escape(block)}}}}} \\")
        lines.append(" & ".join(_latex_cell(*parts) for parts in cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = " ".join(filter(None, [note, reasons(frame)]))
    lines += [rf"\par\footnotesize {_escape(notes)}"] if notes else []
    return "\n".join([*lines, r"\end{table*}", ""])


def _latex_cell(text: str, detail: str, bold: bool, underline: bool) -> str:
    shown = _escape(text)
    shown = rf"\textbf{{{shown}}}" if bold else rf"\underline{{{shown}}}" if underline else shown
    return f"{shown} {{\\tiny {_escape(detail)}}}" if detail else shown


def _html_cell(text: str, detail: str, bold: bool, underline: bool) -> str:
    shown = html.escape(text).replace("d_v", "d<sub>v</sub>").replace("_", "_<wbr>")
    shown = f"<b>{shown}</b>" if bold else f"<u>{shown}</u>" if underline else shown
    return f"{shown}<br><small>{html.escape(detail)}</small>" if detail else shown


def _escape(text: str) -> str:
    """Text as LaTeX shows it literally; the symbols of the tables become mathematics."""
    plain = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    plain |= {char: f"\\{char}" for char in "&%$#_{}"}
    plain |= {DASH: "--", "±": r"$\pm$", "×": r"$\times$", "β": r"$\beta$"}
    return "".join(plain.get(char, char) for char in text).replace(r"d\_v", "$d_v$")
