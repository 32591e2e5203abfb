"""The parts of README.md that come from files: results of kept runs, and the workflow's picture."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ddl.config import load_scale, load_variants
from ddl.files import write_text
from ddl.layout import BASELINE, ROOT
from ddl.reporting.budget import budget_part
from ddl.reporting.keep_reference import REFERENCE, KeepError


def readme(name: str) -> None:
    """Write the marked parts of README.md.

    Raises:
        KeepError: no such reference results, or a mark is missing.
    """
    folder = REFERENCE / name
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in REFERENCE.glob("*"))) or "none"
        raise KeepError(f"results/reference/{name}: not found; there are: {known}")
    path = ROOT / "README.md"
    text = path.read_text()
    for part, content in readme_parts(folder).items():
        text = replace_part(text, part, content)
    write_text(path, text)
    print(f"README.md shows results/reference/{name}")


def readme_parts(folder: Path) -> dict[str, str]:
    """The marked parts that come from reference results, and the workflow's picture."""
    numbers = json.loads((folder / "numbers.json").read_text())
    return {
        "results": results_part(folder, numbers),
        "times": times_part(json.loads((folder / "times.json").read_text()), numbers),
        "budget": budget_part(),
        "bias": bias_part(REFERENCE / "value-bias", numbers),
        "rate": rate_part(REFERENCE / "learning-rate"),
        "kernels": kernels_part(REFERENCE / "kernels"),
        "generation": generation_part(REFERENCE / "generation.csv"),
        "claims": claims_part(),
        "workflow": f"```mermaid\n{rulegraph()}\n```",
    }


def replace_part(text: str, part: str, content: str) -> str:
    """Put content between `<!-- begin part -->` and `<!-- end part -->`."""
    begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise KeepError(f"README.md: expected the marks {begin} and {end} once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def results_part(folder: Path, numbers: dict[str, Any]) -> str:
    """The table of all runs, ours beside the paper's, and where ours come from."""
    lines = [
        "| size | model | parameters | val. loss | minus baseline | *paper: minus baseline* | 1-shot average, % "
        "| train speed / baseline | *paper* | peak memory / baseline | *paper* |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    labels = {variant["slug"]: variant["label"] for variant in numbers["variants"]}
    for size, runs in numbers["runs"].items():
        for slug, ours in runs.items():
            paper = numbers["published"][size][slug]
            accuracy = _number(ours["avg_1shot"], "{:.1f}", 100)
            if ours["avg_1shot_stderr"] is not None:
                accuracy += f" ± {100 * ours['avg_1shot_stderr']:.1f}"
            cells = [
                size,
                labels[slug],
                _number(ours["params"], "{:,.0f}"),
                _number(ours["val_loss"], "{:.3f}"),
                "" if slug == BASELINE else _number(ours["delta"], "{:+.3f}"),
                "" if slug == BASELINE else _number(paper["delta"], "*{:+.4f}*"),
                accuracy,
                _number(ours["train_ratio"], "{:.2f}"),
                _number(paper["train_ratio"], "*{:.2f}*"),
                _number(ours["peak_mem_factor"], "{:.2f}"),
                _number(paper["peak_mem_factor"], "*{:.2f}*"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    source, paper_run = numbers["provenance"], numbers["paper"]
    place = folder.relative_to(ROOT)
    lines += [
        "",
        f"Scale `{numbers['scale']['name']}`: {numbers['training']['tokens']:,} tokens a run, "
        f"{len(numbers['scale']['seeds'])} seed; {source['device']}, torch {source['versions'].get('torch')}, "
        f"commit `{source['commit'][:10]}`; files in [`{place}`]({place}). Columns in italics are the paper's own, "
        f"from models trained on {paper_run['tokens'] / 1e9:.2f} B tokens: they are shown for their sign and order, "
        "the absolute numbers of the two scales do not compare. A dash is a number that the paper does not give.",
    ]
    return "\n".join(lines)


def times_part(spent: dict[str, Any], numbers: dict[str, Any]) -> str:
    """How long each stage took in the reference run."""
    lines = ["| stage | jobs | seconds of work |", "|---|--:|--:|"]
    lines += [f"| {row['stage']} | {row['jobs']} | {row['seconds']:,.1f} |" for row in spent["stages"]]
    lines += [
        "",
        f"By the clock {spent['wall_seconds'] / 60:.0f} minutes on {spent['cores']} cores "
        f"({numbers['provenance']['device']}). The results took {spent['results_bytes'] / 1e6:,.0f} MB, the "
        f"environment {spent['environment_bytes'] / 1e9:.1f} GB, with a build of torch that has no CUDA packages.",
    ]
    return "\n".join(lines)


def bias_part(folder: Path, numbers: dict[str, Any]) -> str:
    """What the initial bias of the value branch does, from one more run of the small DDL-CC with another bias."""
    settings = json.loads((folder / "provenance.json").read_text())["settings"]["model"]
    other = json.loads((folder / "validation.json").read_text())["val_loss"]
    small, ours = numbers["runs"]["small"], numbers["model"]["value_bias_init"]
    place = folder.relative_to(ROOT)
    return (
        "The paper does not publish the initial bias of the value branch (`value_bias_init`). It matters this early: "
        f"with {settings['value_bias_init']:g} instead of {ours:g} the small DDL-CC ends at {other:.3f} nats, not "
        f"{small['ddl-cc']['val_loss']:.3f}, the baseline at {small[BASELINE]['val_loss']:.3f} "
        f"([`{place}`]({place}), one run)."
    )


def generation_part(path: Path) -> str:
    """Tokens a second of text generation, from the newest rows that benchmarks/generation.py wrote."""
    rows = newest_rows(path)
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    columns = [(size, cache) for size in sizes for cache in ("True", "False")]
    heads = [f"{size}, {'cache' if cache == 'True' else 'no cache'}" for size, cache in columns]
    lines = [f"| tokens/s | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    speeds = {(row["variant"], row["size"], row["cache"]): float(row["tok_per_s"]) for row in rows}
    labels = load_variants()
    for slug in dict.fromkeys(row["variant"] for row in rows):
        cells = [_number(speeds.get((slug, *column)), "{:,.0f}") for column in columns]
        lines.append(f"| {labels[slug].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate_part(folder: Path) -> str:
    """Validation losses over the learning rate, from a kept sweep."""
    with open(folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scale, labels = load_scale(rows[0]["scale"]), load_variants()
    rates = sorted({float(row["learning_rate"]) for row in rows})
    losses = {
        (row["size"], row["variant"], float(row["learning_rate"])): float(row["val_loss"] or "inf") for row in rows
    }
    lines = [
        f"| validation loss after {int(rows[0]['tokens']):,} tokens | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"|---|{'--:|' * len(rates)}",
    ]
    for size, variant in dict.fromkeys((row["size"], row["variant"]) for row in rows):
        found = [losses[size, variant, rate] for rate in rates]
        cells = [f"**{loss:.3f}**" if loss == min(found) else f"{loss:.3f}" for loss in found]
        lines.append(f"| {size}, {labels[variant].label} | {' | '.join(cells)} |")
    place = folder.relative_to(ROOT)
    lines += ["", f"One seed; the scale trains at {scale.training.learning_rate:g}; files in [`{place}`]({place})."]
    return "\n".join(lines)


def newest_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV that is added to, of its newest commit."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["commit"] == rows[-1]["commit"]]


def kernels_part(folder: Path) -> str:
    """Bytes that the fused rewrite moves, and the gradient's error with stored and with rebuilt states."""
    width = 768
    lines = [
        f"| fused rewrite, d = {width}, bf16: vectors of d numbers per token | floor | ours, states stored "
        "| ours, states rebuilt | eager PyTorch | authors' kernels |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    names = {
        "fused_rewrite": "d_v = 1",
        "fused_rewrite_cc": "CC, d_v = 4",
        "fused_rewrite_tc": "TC, d_v = 4",
    }
    counted = {
        (row["operation"], row["direction"], row["states"]): row
        for row in newest_rows(folder / "bytes.csv")
        if int(row["d"]) == width
    }
    for operation, name in names.items():
        for direction in ("forward", "backward"):
            stored, rebuilt = (counted[operation, direction, states] for states in ("stored", "rebuilt"))
            figures = [stored["floor"], stored["ours"], rebuilt["ours"], stored["eager"], stored["authors"]]
            cells = [f"{float(figure) / (2 * width):.1f}" for figure in figures]
            if stored["authors"] == stored["eager"]:
                cells[-1] = "not fused"
            lines.append(f"| {name}, {direction} | {' | '.join(cells)} |")
    lines += [
        "",
        "| error of the gradient against fp64 | layers | fp32: stored | rebuilt | bf16, state in fp32: stored "
        "| rebuilt | bf16, state in bf16: stored | rebuilt |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    labels = load_variants()
    errors: dict[tuple[str, str], list[str]] = {}
    for row in newest_rows(folder / "gradient_error.csv"):
        errors.setdefault((labels[row["variant"]].label, row["layers"]), []).append(f"{float(row['error']):.2e}")
    lines += [f"| {label} | {layers} | {' | '.join(found)} |" for (label, layers), found in errors.items()]
    return "\n".join(lines)


def claims_part() -> str:
    """The claims of the paper and where they were checked, as the last derivation notebook shows them."""
    with open(ROOT / "paper" / "claims.csv", newline="") as file:
        head, *rows = csv.reader(file)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def rulegraph() -> str:
    """The workflow as Snakemake itself draws it, in Mermaid's language; without `all`, which everything leads to."""
    snakemake = Path(sys.executable).parent / "snakemake"
    done = subprocess.run(
        [str(snakemake), "--rulegraph", "mermaid-js", "--forceall"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]$", done.stdout, re.MULTILINE))
    edges = re.findall(r"^\s*(id\d+) --> (id\d+)$", done.stdout, re.MULTILINE)
    named = sorted((names[a], names[b]) for a, b in edges if names[b] != "all")
    apart = sorted(set(names.values()) - {name for edge in named for name in edge} - {"all"})
    return "\n".join(["flowchart TB", *(f"  {a} --> {b}" for a, b in named), *(f"  {name}" for name in apart)])


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return "–" if value is None else form.format(factor * value)
