"""Write the generated parts of README.md and docs/*.md, from kept results, the settings and the Snakefile.

A part is the text between `<!-- begin X -->` and `<!-- end X -->` in one of the pages. `ddl readme` writes all parts.
"""

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from ddl.config import load_scale, load_variants, paper_variants, scale_names
from ddl.files import write_text
from ddl.layout import BASELINE, ROOT
from ddl.reporting.accuracy_tables import published_gains
from ddl.reporting.budget import budget_part
from ddl.reporting.choices import choices
from ddl.reporting.claims import claims_table, notebooks_of, read_claims
from ddl.reporting.evidence import SCALAR
from ddl.reporting.keep_reference import REFERENCE, KeepError
from ddl.reporting.quoted_numbers import compare, measured, noises, published_numbers
from ddl.reporting.read_results import Results
from ddl.reporting.readme_studies import study_parts
from ddl.reporting.seed_noise import Rounded, seeds_note
from ddl.reporting.statistics import Z
from ddl.reporting.table_format import DASH


def readme(name: str) -> None:
    """Write the generated parts of all pages.

    Raises:
        KeepError: there are no such reference results, or marks and parts do not match.
    """
    folder = REFERENCE / name
    if not (folder / "numbers.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in REFERENCE.glob("*/numbers.json"))) or "none"
        raise KeepError(f"results/reference/{name}: not found; expected one of: {known}")
    pages = read_pages()
    changed = {page: text for page, text in fill(pages, readme_parts(folder)).items() if text != pages[page]}
    for page, text in changed.items():
        write_text(ROOT / page, text)
    print(f"{', '.join(changed) or 'no page'} changed; the pages show results/reference/{name}")


def read_pages() -> dict[str, str]:
    """Path -> text of README.md and every page in docs/."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def fill(pages: dict[str, str], parts: dict[str, str]) -> dict[str, str]:
    """Insert each part between its marks.

    Raises:
        KeepError: the marks of a part are missing or duplicated, or there are marks of an unknown part.
    """
    for page, text in pages.items():
        for part in re.findall(r"<!-- (?:begin|end) (\S+) -->", text):
            if part not in parts:
                raise KeepError(f"{page}: unknown part {part} in marks, expected one of {', '.join(parts)}")
    filled = dict(pages)
    for part, content in parts.items():
        begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
        counts = {page: (text.count(begin), text.count(end)) for page, text in pages.items()}
        holders = [page for page, count in counts.items() if count != (0, 0)]
        if [counts[page] for page in holders] != [(1, 1)]:
            found = ", ".join(holders) or "no page"
            raise KeepError(f"expected the marks {begin} and {end} once in README.md and docs/, found them in {found}")
        before, rest = filled[holders[0]].split(begin)
        filled[holders[0]] = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return filled


def readme_parts(folder: Path) -> dict[str, str]:
    """Name of a generated part -> its text."""
    numbers = json.loads((folder / "numbers.json").read_text()) | current_numbers(folder)
    spent = json.loads((folder / "times.json").read_text())
    return {
        "headline": headline_part(numbers),
        "results": results_part(folder, numbers),
        "clock": clock_part(spent, numbers),
        "times": times_part(spent),
        "scales": scales_part(),
        "budget": budget_part(),
        "kernels": kernels_part(REFERENCE / "kernels"),
        "predicted": predicted_part(REFERENCE / "kernels"),
        "generation": generation_part(REFERENCE / "generation.csv"),
        "scoring": scoring_part(REFERENCE / "scoring.csv"),
        "tokenising": tokenising_part(REFERENCE / "tokenising.csv"),
        "kills": kills_part(REFERENCE / "kills.csv"),
        "gains": gains_part(),
        "claims": claims_part(),
        "mutations": mutations_part(REFERENCE / "mutations.csv"),
        "choices": choices_part(),
        "workflow": f"```mermaid\n{rulegraph()}\n```",
        **study_parts(),
    }


def current_numbers(folder: Path) -> dict[str, Any]:
    """The numbers that depend on the published tables and on the noise study, as these are now."""
    results = Results(folder)
    kept = json.loads((folder / "numbers.json").read_text())
    names = {variant["slug"] for variant in kept["variants"]}  # the run may be older than other designs
    runs = {
        size: {slug: run for slug, run in found.items() if slug in names} for size, found in measured(results).items()
    }
    paper, gained = published_numbers(results), kept["gains"]["ours"]
    comparison = {size: compare(runs[size], paper[size], gained[size]) for size in results.sizes}
    noise = {"noise": noises(results), "seeds_note": seeds_note(results)}
    return {"runs": runs, "published": paper, "comparison": comparison, **noise}


def headline_part(numbers: dict[str, Any]) -> str:
    """Compare the rewrite designs with the baseline, and one value channel with the best design."""
    sizes = list(numbers["runs"])
    ours = {size: numbers["comparison"][size]["ours"] for size in sizes}
    paper = {size: numbers["comparison"][size]["published"] for size in sizes}
    counts = " and ".join(f"{ours[size]['lower_loss']} of {ours[size]['compared']} {size}" for size in sizes)
    gains, scalars = (
        _by_size(sizes, [_gain(found[size]) for size in sizes])
        for found in (
            {size: ours[size]["best_shown"] for size in sizes},
            {size: numbers["runs"][size][SCALAR]["shown"]["delta"] for size in sizes},
        )
    )
    paper_gains, paper_scalars = (
        _by_size(sizes, [f"{gain:.4f}" for gain in found])
        for found in (
            [-paper[size]["best_delta"] for size in sizes],
            [-numbers["published"][size][SCALAR]["delta"] for size in sizes],
        )
    )
    seeds = len(numbers["scale"]["seeds"])
    sentences = [
        f"**At the {numbers['scale']['phrase']}** ({numbers['training']['tokens']:,} tokens per run, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}) {counts} rewrite designs end at a lower validation loss than the "
        "baseline.",
        f"The largest gain is {gains} nats; that of DDL with one value channel is {scalars}.",
        f"In the paper, after {numbers['paper']['tokens'] / 1e9:.2f} billion tokens and with one seed, the largest "
        f"gain is {paper_gains} and that with one value channel {paper_scalars}.",
    ]
    if all(needs_no_expansion(numbers, size) for size in sizes):
        sentences.append(
            "So most of the gain here needs no expanded state, whereas most of the paper's gain needs one."
        )
    return " ".join([*sentences, numbers["seeds_note"]])


def needs_no_expansion(numbers: dict[str, Any], size: str) -> bool:
    """Whether one value channel has surely more than half of the largest gain here, and less than half in the paper.

    The errors of our gains are the half-widths of their intervals, or with one seed two standard deviations of the
    noise study. Without either nothing is sure.
    """
    scalar, best = (
        numbers["runs"][size][SCALAR]["shown"]["delta"],
        numbers["comparison"][size]["ours"]["best_shown"],
    )
    noise = numbers["noise"][size]
    one_seed = 2 * noise["difference"] if noise else math.inf
    errors = [one_seed if gain["half_width"] is None else gain["half_width"] for gain in (scalar, best)]
    here = -scalar["mean"] - errors[0] > (-best["mean"] + errors[1]) / 2
    theirs = numbers["published"][size][SCALAR]["delta"] / numbers["comparison"][size]["published"]["best_delta"]
    return bool(here and theirs < 1 / 2)


def _gain(difference: dict[str, Any]) -> str:
    """How far a design is below the baseline, as printed, e.g. "0.65 ± 0.03"."""
    shown = Rounded(**difference)
    return dataclasses.replace(shown, mean=-difference["mean"]).text


def results_part(folder: Path, numbers: dict[str, Any]) -> str:
    """The table of our and the paper's runs, and the provenance of ours."""
    lines = [
        "| size | model | parameters | val. loss | minus baseline | *paper: minus baseline* | 1-shot average, % "
        "| train speed / baseline | *paper* | peak memory / baseline | *paper* |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    labels = {variant["slug"]: variant["label"] for variant in numbers["variants"]}
    for size, runs in numbers["runs"].items():
        for slug, ours in runs.items():
            paper = numbers["published"][size][slug]
            mark = "†" if paper["cost_version"] == "revised" else ""
            loss, delta, accuracy = (Rounded(**ours["shown"][name]) for name in ("val_loss", "delta", "avg_1shot"))
            items = ours["avg_1shot_stderr"] if accuracy.half_width is None else None
            of_items = "" if items is None else f" ± {100 * items:.{accuracy.decimals}f}"
            cells = [
                size,
                labels[slug],
                _number(ours["params"], "{:,.0f}"),
                loss.text,
                "" if slug == BASELINE else delta.difference,
                "" if slug == BASELINE else _number(paper["delta"], "*{:+.4f}*"),
                accuracy.text + of_items,
                _number(ours["train_ratio"], "{:.2f}"),
                _number(paper["train_ratio"], f"*{{:.2f}}*{mark}"),
                _number(ours["peak_mem_factor"], "{:.2f}"),
                _number(paper["peak_mem_factor"], f"*{{:.2f}}*{mark}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    source, paper_run = numbers["provenance"], numbers["paper"]
    place = folder.relative_to(ROOT)
    one_seed = len(numbers["scale"]["seeds"]) == 1
    errors_of_accuracies = "The ± of an accuracy is its standard error over items. " if one_seed else ""
    lines += [
        "",
        f"Scale `{numbers['scale']['name']}`: {numbers['training']['tokens']:,} tokens per run; number of seeds: "
        f"{len(numbers['scale']['seeds'])}; {source['device']}, torch {source['versions'].get('torch')}, "
        f"commit `{source['commit'][:10]}`; files in [`{place}`]({place}). {numbers['seeds_note']} "
        f"{errors_of_accuracies}Columns in italics are the paper's, from models trained on "
        f"{paper_run['tokens'] / 1e9:.2f} billion tokens. Compare their signs and order with ours, but not their "
        "magnitudes. They are from v3, except those marked †, which only the revised text gives. A dash marks a number "
        "that neither version gives.",
    ]
    return "\n".join(lines)


def clock_part(spent: dict[str, Any], numbers: dict[str, Any]) -> str:
    """Time and disk space of the reference run."""
    return (
        f"The reference run took {spent['wall_seconds'] / 60:.0f} minutes on {spent['cores']} cores "
        f"({numbers['provenance']['device']}). Its results take {spent['results_bytes'] / 1e6:,.0f} MB, and the "
        f"environment {spent['environment_bytes'] / 1e9:.1f} GB with a build of torch that has no CUDA packages."
    )


def times_part(spent: dict[str, Any]) -> str:
    """Time that each stage took in the reference run."""
    lines = ["| stage | jobs | seconds, summed over jobs |", "|---|--:|--:|"]
    lines += [f"| {row['stage']} | {row['jobs']} | {row['seconds']:,.1f} |" for row in spent["stages"]]
    lines += ["", f"The whole run took {spent['wall_seconds'] / 60:.0f} minutes on {spent['cores']} cores."]
    return "\n".join(lines)


def scales_part() -> str:
    """The table of scales, in order of tokens per run."""
    scales = sorted(map(load_scale, scale_names()), key=lambda scale: scale.tokens)
    default = default_scale()
    lines = ["| scale | layers | width | corpus | tokens per run | GPUs per run |", "|---|---|---|---|--:|--:|"]
    for scale in scales:
        sizes = scale.sizes.values()
        cells = [
            f"`{scale.name}`{' (default)' if scale.name == default else ''}",
            " and ".join(str(size.layers) for size in sizes),
            " and ".join(f"{size.width:,}" for size in sizes),
            f"`{scale.corpus.name}`",
            f"{scale.tokens:,}",
            str(scale.training.gpus),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def default_scale() -> str:
    """The scale that runs unless another is asked for."""
    return str(yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["scale"])


def generation_part(path: Path) -> str:
    """The table of generation speeds in tokens/s, from the newest rows of benchmarks/generation.py."""
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


def scoring_part(path: Path) -> str:
    """Scoring speed relative to the harness' own adapter, from benchmarks/scoring.py."""
    rows = newest_rows(path)
    ratios = [float(row["ratio_to_hf"]) for row in rows if row["adapter"] == "shared"]
    return (
        "The choices of a question share the computation of their context. This scores "
        f"{min(ratios):.2f} to {max(ratios):.2f} times as many requests per second as the harness' own adapter "
        f"(laptop models on one core, {rows[0]['device']}; `benchmarks/scoring.py`, rows in "
        f"{_link(path.relative_to(ROOT))})."
    )


def tokenising_part(path: Path) -> str:
    """Speed and memory of building a large corpus, from benchmarks/tokenising.py, and what follows for the paper's."""
    rows = newest_rows(path)
    alone, large = rows[0], max(rows, key=lambda row: int(row["documents"]))
    small = next(row for row in rows if row["processes"] == large["processes"])
    rate, tokens, cores = float(large["tok_per_s_per_process"]), load_scale("paper").tokens, 32
    memory = [float(row["peak_mb"]) for row in (small, large)]
    return (
        f"One process turns {float(alone['tok_per_s_per_process']):,.0f} tokens per second into shards, and each of "
        f"{large['processes']} processes {rate:,.0f} ({large['device']}; the laptop scale's text and tokenizer, with "
        "words that a cache of the tokenizer often knows; web text takes longer). At the latter rate the paper's "
        f"{tokens / 1e9:.0f} billion tokens would take {tokens / rate / cores / 3600:.1f} hours on {cores} cores. The "
        f"peak memory of all processes is {memory[0]:,.0f} MB for {int(small['documents']):,} documents and "
        f"{memory[1]:,.0f} MB for {int(large['documents']):,} (`benchmarks/tokenising.py`, rows in "
        f"{_link(path.relative_to(ROOT))})."
    )


def kills_part(path: Path) -> str:
    """How often the workflow was killed by tests/kills/run.py, which writes its rows if every build ended the same."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return (
        f"In its last run it killed the workflow {len(rows)} times in {len({row['build'] for row in rows})} builds; "
        f"each build ended with the bytes of one without kills (rows in {_link(path.relative_to(ROOT))})."
    )


def gains_part() -> str:
    """The number of the paper's accuracy gains that exceed their noise."""
    cells, averages = (published_gains()[name] for name in ("cells", "averages"))
    return (
        f"In single tasks, {cells['higher']} of {cells['compared']} published accuracies are above the baseline's. Of "
        f"these gains, {cells['higher_beyond_noise']} exceed {Z:g} standard errors of the difference between "
        f"two independent models. Of the {averages['compared']} averages over tasks, {averages['higher']} are above "
        f"the baseline's, and {averages['higher_beyond_noise']} of these gains exceed that noise."
    )


def newest_rows(path: Path) -> list[dict[str, str]]:
    """The rows from the newest commit in a CSV to which benchmarks append."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["commit"] == rows[-1]["commit"]]


def kernels_part(folder: Path) -> str:
    """Tables of the memory traffic of the fused rewrite and of the gradient error with stored and rebuilt states."""
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
        "| error of the gradient against fp64 | layers x width | training steps | state in fp32: stored | rebuilt "
        "| most affected | state in bf16: stored | rebuilt | most affected | largest difference |",
        "|---|--:|--:|--:|--:|---|--:|--:|---|--:|",
    ]
    return "\n".join(lines + [_gradient_row(model) for model in _by_model(folder / "gradient_error.csv")])


def predicted_part(folder: Path) -> str:
    """Tables of what `benchmarks/roofline.py` predicts: kernels on one GPU, and training steps on several."""
    passes, steps = (newest_rows(folder / f"predicted_{name}.csv") for name in ("passes", "steps"))
    gpu = "H200"
    lines = [
        f"| predicted, {gpu}, bf16, states stored | d = 768: ns per token | % of copy | d = 1,024: ns per token "
        "| % of copy | limit |",
        "|---|--:|--:|--:|--:|---|",
    ]
    rows: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in passes:
        if (row["gpu"], row["states"]) == (gpu, "stored"):
            rows.setdefault((row["operation"], row["d_v"], row["direction"]), []).append(row)
    for (operation, d_v, direction), both in rows.items():
        cells = [
            cell
            for row in both
            for cell in (f"{float(row['ns_per_token']):.1f}", f"{float(row['percent_of_copy']):.0f}")
        ]
        limits = " and ".join(dict.fromkeys(row["limit"] for row in both))
        lines.append(f"| `{operation}`, d_v = {d_v}, {direction} | {' | '.join(cells)} | {limits} |")
    labels, designs = paper_variants(), list(dict.fromkeys(row["variant"] for row in steps))
    lines += [
        "",
        f"| predicted training speed / baseline | {' | '.join(labels[slug].label for slug in designs)} |",
        f"|---|{'--:|' * len(designs)}",
    ]
    ratios = {(row["gpu"], row["size"], row["variant"]): row for row in steps}
    for gpu, size in dict.fromkeys((row["gpu"], row["size"]) for row in steps):
        found = [ratios[gpu, size, slug] for slug in designs]
        ranges = [
            " to ".join(
                dict.fromkeys(f"{float(row[name]):.2f}" for name in ("ratio_at_target", "ratio_at_papers_speed"))
            )
            for row in found
        ]
        lines.append(f"| {gpu}, {size} | {' | '.join(ranges)} |")
    return "\n".join(lines)


def _by_model(path: Path) -> list[list[dict[str, str]]]:
    """The rows of gradient_error.csv, one list per measured model."""
    models: dict[tuple[str, ...], list[dict[str, str]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = (row["width"], row["layers"], row["variant"], row["step"])
            models.setdefault(key, []).append(row)
    return [models[key] for key in sorted(models, key=lambda key: (int(key[0]), int(key[1]), key[2], int(key[3])))]


def _gradient_row(rows: list[dict[str, str]]) -> str:
    """Errors of one model's gradient, and the group of parameters whose error grows most by rebuilding states."""
    model = rows[0]
    shape = f"{model['layers']} x {int(model['width']):,}"
    cells = [load_variants()[model["variant"]].label, shape, model["step"]]
    for arithmetic in ("bf16, state in fp32", "bf16, state in bf16"):
        groups = {row["group"]: row for row in rows if row["arithmetic"] == arithmetic}
        ratios = {group: float(row["rebuilt"]) / float(row["stored"]) for group, row in groups.items()}
        worst = max(ratios, key=lambda group: ratios[group])
        cells += [f"{float(groups['all'][way]):.2%}" for way in ("stored", "rebuilt")]
        cells.append(f"{worst}, x {ratios[worst]:.2f}")
    cells.append(f"{max(float(row['difference']) for row in groups.values()):.2%}")
    return f"| {' | '.join(cells)} |"


def claims_part() -> str:
    """The table of the paper's claims; the column `Check` links the notebooks and gives the label of the check."""
    pages = {path.name[:2]: path.name for path in (ROOT / "notebooks").glob("*.py")}
    claims = read_claims()
    for claim in claims:
        links = [f"[{number}](../notebooks/{pages[number]})" for number in notebooks_of(claim)]
        claim["Check"] = f"{', '.join(links) or DASH}: `{claim['Label']}`"
    return claims_table(claims, ("Paper", "Version", "Claim", "Check", "Verified by", "Outcome, and what is inexact"))


def mutations_part(path: Path) -> str:
    """How many mutations the notebooks and the tests notice, by room, and the list of those that neither notices."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return f"There are no numbers yet: {_link(path.relative_to(ROOT))} is empty."
    control, *rows = rows
    rooms: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        place = Path(row["file"])
        kind = ", Triton kernels" if place.stem.endswith("_triton") else ""
        rooms.setdefault(f"`{place.parent}/`{kind}", []).append(row)
    lines = [
        "| room | mistakes | noticed by both | by a notebook only | by a test only | by neither "
        "| no notebook runs the file |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for room, found in [*sorted(rooms.items()), ("all", rows)]:
        noticed = [(_notices(row["notebook"]), _notices(row["test"])) for row in found]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        unread = sum(row["notebook"] == "not run" for row in found)
        cells = [room, len(found), *(noticed.count(kind) for kind in kinds), unread]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    missed = [row for row in rows if not _notices(row["notebook"]) and not _notices(row["test"])]
    if missed:
        lines += ["", "Noticed by neither: " + "; ".join(f"`{row['file']}`: {row['breaks']}" for row in missed) + "."]
    seconds = sum(float(row["seconds"]) for row in (control, *rows))
    lines += [
        "",
        f"Without a mistake, all notebooks and tests pass. The whole list took {seconds / 3600:.1f} hours on one core "
        f"({control['device']}). The table {_link(path.relative_to(ROOT))} names for each mistake the first notebook "
        "and the first test that fail, and their errors.",
    ]
    return "\n".join(lines)


def _notices(name: str) -> bool:
    """Whether a cell of the table of mutations names a notebook or a test."""
    return name not in ("none", "not run")


def choices_part() -> str:
    """The table of choices at the paper's scale, with the values of the default scale where they differ."""
    columns = {
        "topic": "Open point",
        "paper": "The paper (v3)",
        "revised": "Revised text",
        "used": "Used here",
        "settings": "Setting",
        "source": "Source",
        "why": "Why, and what differs",
    }
    lines = [f"| {' | '.join(columns.values())} |", f"|{'---|' * len(columns)}"]
    for row in choices(load_scale("paper"), load_scale(default_scale())):
        row["settings"] = ", ".join(f"`{name}`" for name in row["settings"].split(", ") if name)
        lines.append(f"| {' | '.join(row[column] or '–' for column in columns)} |")
    return "\n".join(lines)


def rulegraph() -> str:
    """Snakemake's graph of the rules in Mermaid syntax, without `all`, to which every rule leads."""
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


def _link(place: Path) -> str:
    """A link from a page in docs/ to a path of the repository."""
    return f"[`{place}`](../{place})"


def _by_size(sizes: list[str], values: list[str]) -> str:
    return " and ".join(f"{value} ({size})" for size, value in zip(sizes, values, strict=True))


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return "–" if value is None else form.format(factor * value)
