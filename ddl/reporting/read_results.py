"""Read the results under results/<scale>/ and the published tables into frames.

A missing file becomes a row whose numbers are NaN and whose `reason` names the file. An unreadable file is an error,
because it would otherwise look like a run that never took place.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddl.config import Scale, load_scale, paper_variants, scale_names, to_mapping
from ddl.errors import UserError
from ddl.evaluation.columns import by_column
from ddl.layout import ANY_RUN, BASELINE, COST, DATA_MANIFEST, EVAL, RANDOM_INIT, ROOT, RUN
from ddl.reporting.seed_statistics import Estimate, over_seeds, paired_difference

PUBLISHED_DIR = ROOT / "paper" / "published"
REFERENCE_DIR = ROOT / "results" / "reference"
COST_NUMBERS = (
    *(
        f"{mode}_{what}_{part}"
        for mode in ("train", "inference")
        for what in ("tok_per_s", "ratio")
        for part in ("median", "p20", "p80")
    ),
    *("params", "peak_mem_bytes", "peak_mem_factor"),
)
TASK_COLUMNS = ("ARC-C", "ARC-E", "Hellaswag", "OpenBookQA", "PIQA", "SciQ", "Social IQA", "WG")

Record = dict[str, Any]
Run = tuple[str, str, int]


class ResultsError(UserError):
    """Results that cannot be read; the message names the file and what was expected."""


class Results:
    """The results of one scale.

    Args:
        path: the folder results/<scale>. A copy may have another name if it contains a run's summary.json.

    Raises:
        ResultsError: the folder does not exist, or its scale cannot be determined.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ResultsError(f"{self.path}: not found; expected the results of a scale, e.g. results/laptop")
        self.scale: Scale = load_scale(self._scale_name())
        self.sizes = list(self.scale.sizes)
        self.variants = self.scale.variants

    def _scale_name(self) -> str:
        if self.path.resolve().name in scale_names():
            return self.path.resolve().name
        for file in sorted(self.path.glob(f"{ANY_RUN}/summary.json")):
            return str(_read_json(file)["scale"])
        raise ResultsError(
            f"{self.path}: expected a folder named after a scale ({', '.join(scale_names())}) or a run's summary.json"
        )

    @property
    def scale_phrase(self) -> str:
        """The scale as a phrase, e.g. "laptop scale"; names such as H200 keep their capitals."""
        title = self.scale.title
        return f"{title.lower() if title[1:].islower() else title} scale"

    def runs(self) -> Iterator[Run]:
        """Every (size, variant, seed) of the scale, in the order of the paper's tables."""
        for size in self.sizes:
            for variant in self.variants:
                for seed in self.scale.seeds:
                    yield size, variant, seed

    def curves(self, size: str = "") -> pd.DataFrame:
        """Records of all metrics.jsonl, or of those of one size.

        Columns: size, variant, seed, step, tokens, flops, seconds, train_loss, val_loss, lr, ..., reason. `flops`
        and `seconds` are cumulative over training; they are NaN for runs that did not record them.
        """
        rows: list[Record] = []
        quantities = ("train_loss", "val_loss", "lr", "grad_norm", "tok_per_s")
        for run_size, variant, seed in self.runs():
            if size and run_size != size:
                continue
            key = {"size": run_size, "variant": variant, "seed": seed}
            folder = RUN.format(**key)
            per_token = self._json(f"{folder}/summary.json").get("train_flops_per_token") or float("nan")
            records = self._lines(f"{folder}/metrics.jsonl")
            for record in records:
                _check(
                    self.path / f"{folder}/metrics.jsonl",
                    record,
                    dict.fromkeys(("step", "tokens", "seconds", *quantities), float),
                    needed=("step", "tokens"),
                )
            rows += [{**key, "flops": per_token * record["tokens"], **record, "reason": ""} for record in records]
            if not records:
                rows.append({**key, "reason": self._reason(f"{folder}/metrics.jsonl")})
        return _frame(rows, numeric=("step", "tokens", "flops", "seconds", *quantities))

    def gradients(self, size: str, variant: str) -> pd.DataFrame:
        """Gradient norms of the parts of one design's models: seed, step, and one column per part.

        Empty if no run recorded them.
        """
        folders = {seed: self.path / RUN.format(size=size, variant=variant, seed=seed) for seed in self.scale.seeds}
        files = {seed: folder / "gradients.csv" for seed, folder in folders.items()}
        frames = [pd.read_csv(file).assign(seed=seed) for seed, file in files.items() if file.is_file()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["seed", "step"])

    def summaries(self) -> pd.DataFrame:
        """Contents of all summary.json, one row per run, with `reason`."""
        return self._per_run(
            f"{RUN}/summary.json",
            (
                *("val_loss", "val_perplexity", "params", "steps", "tokens", "seconds", "peak_mem_bytes"),
                "train_flops_per_token",
            ),
        )

    def validation(self) -> pd.DataFrame:
        """Loss in nats and perplexity on the whole validation split, one row per run, with `reason`."""
        return self._per_run(f"{EVAL}/validation.json", ("val_loss", "val_loss_stderr", "val_perplexity", "tokens"))

    def downstream(self, shots: int) -> pd.DataFrame:
        """Accuracies in [0, 1] in long form: one row per run and task, and one with column "Avg." for the average.

        Columns: size, variant, seed, column (name in the paper's tables), task, metric, value, stderr, chance, n,
        reason.
        """
        rows: list[Record] = []
        for size, variant, seed in self.runs():
            key = {"size": size, "variant": variant, "seed": seed}
            rows += [key | row for row in self._tasks(f"{EVAL.format(**key)}/{shots}shot.json")]
        return _task_frame(rows)

    def untrained(self, shots: int) -> pd.DataFrame:
        """Accuracies of an untrained model, as a check of the tasks; columns as in `downstream`, without the run."""
        return _task_frame(self._tasks(f"{RANDOM_INIT}/{shots}shot.json"))

    def outcomes(self, size: str, variant: str, seed: int, shots: int) -> dict[str, np.ndarray]:
        """Column -> 1 (right) or 0 (wrong) for each item, int8; empty if the run has no answers."""
        name = f"{EVAL.format(size=size, variant=variant, seed=seed)}/{shots}shot"
        if not (self.path / f"{name}.parquet").is_file():
            return {}
        items = pd.read_parquet(self.path / f"{name}.parquet", columns=["task", "correct"])
        tasks = self._json(f"{name}.json")["tasks"]
        return {
            str(column): found["correct"].to_numpy().astype(np.int8)
            for column, found in items.groupby(items["task"].map(lambda task: tasks[task]["column"]), sort=False)
        }

    def _tasks(self, name: str) -> list[Record]:
        found = self._json(name)
        _check(self.path / name, found, {"tasks": dict, "average": dict})
        tasks, average = found.get("tasks") or {}, found.get("average") or {}
        _check(self.path / name, tasks, dict.fromkeys(tasks, dict), needed=tasks)
        for entry in (*tasks.values(), average):
            _check(self.path / name, entry, dict.fromkeys(("value", "stderr", "chance", "n"), float))
        for entry in tasks.values():
            _check(self.path / name, entry, {"column": str, "metric": str}, needed=("column",))
        columns = by_column({**entry, "task": task} for task, entry in tasks.items())
        columns["Avg."] = average
        rows = []
        for column in (*TASK_COLUMNS, "Avg."):
            entry = columns.get(column, {})
            reason = "" if "value" in entry else self._reason(name, column)
            rows.append({"column": column, **entry, "reason": reason})
        return rows

    def cost(self) -> pd.DataFrame:
        """Throughput and memory, one row per size and variant; spreads are in columns such as `train_ratio_p20`."""
        rows: list[Record] = []
        for size in self.sizes:
            for variant in self.variants:
                name = COST.format(size=size, variant=variant)
                found = self._json(name)
                row: Record = {"size": size, "variant": variant, "reason": "" if found else self._reason(name)}
                for key, value in found.items():
                    if isinstance(value, dict):
                        row |= {f"{key}_{part}": x for part, x in value.items()}
                    elif key not in ("size", "variant"):
                        row[key] = value
                _check(self.path / name, row, dict.fromkeys(COST_NUMBERS, float))
                rows.append(row)
        return _frame(rows, COST_NUMBERS)

    def manifest(self) -> Record:
        """The manifest of the corpus; empty if there is none."""
        return self._json(DATA_MANIFEST)

    def provenances(self) -> list[Record]:
        """The provenance of every training run that has one."""
        folders = (RUN.format(size=size, variant=variant, seed=seed) for size, variant, seed in self.runs())
        found = (self._json(f"{folder}/provenance.json") for folder in folders)
        return [record for record in found if record]

    def _per_run(self, pattern: str, numeric: tuple[str, ...]) -> pd.DataFrame:
        rows: list[Record] = []
        for size, variant, seed in self.runs():
            name = pattern.format(size=size, variant=variant, seed=seed)
            found = self._json(name)
            _check(self.path / name, found, dict.fromkeys(numeric, float))
            row = {key: found.get(key) for key in numeric}
            lacking = [key for key in numeric[:1] if row[key] is None]
            reason = self._reason(name, *lacking) if lacking else ""
            rows.append({"size": size, "variant": variant, "seed": seed, **row, "reason": reason})
        return _frame(rows, numeric=numeric)

    def _reason(self, name: str, *keys: str) -> str:
        """Why a number is missing: the file does not exist or does not contain the key."""
        if not (self.path / name).is_file():
            return f"{name} is missing"
        return f"{name} has no {', '.join(keys) or 'records'}"

    def _json(self, name: str) -> Record:
        path = self.path / name
        return _read_json(path) if path.is_file() else {}

    def _lines(self, name: str) -> list[Record]:
        path = self.path / name
        if not path.is_file():
            return []
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        except ValueError as error:  # not JSON, or not UTF-8
            raise ResultsError(f"{path}: expected one JSON record per line, found: {error}") from None
        for record in records:
            if not isinstance(record, dict):
                raise ResultsError(f"{path}: expected one JSON record per line, found: {record!r}")
        return records


def published(name: str) -> pd.DataFrame:
    """Read a table from paper/published, with the designs' slugs in the column `variant`.

    `version` says which text of the paper a row is from: `v3` (the revised text repeats all of them) or `revised`.

    Args:
        name: validation_loss, downstream_accuracy, cost or architecture.
    """
    path = PUBLISHED_DIR / f"{name}.csv"
    if not path.is_file():
        raise ResultsError(f"{path.relative_to(ROOT)}: not found; this file is part of the repository")
    frame = pd.read_csv(path)
    if "model" in frame:
        frame["variant"] = frame["model"].map({variant.published: slug for slug, variant in paper_variants().items()})
    return frame


def gpu_cost(size: str) -> dict[str, Record]:
    """Measurements by benchmarks/gpu.py at the paper's shape of a size: variant -> the numbers of `Results.cost`.

    Taken from the newest kept run that measured the baseline with the execution settings of the paper scale; empty if
    there is none.
    """
    frames = [pd.read_csv(file) for file in sorted(REFERENCE_DIR.glob("*/end_to_end.csv"))]
    if not frames:
        return {}
    rows = pd.concat(frames, ignore_index=True)
    paper = load_scale("paper")
    wanted = to_mapping(paper.sizes[size]) | to_mapping(paper.execution) | {"device_type": "cuda"}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    measured = rows[(rows["variant"] == BASELINE) & rows["tok_per_s"].notna()]
    found: dict[str, Record] = {}
    for row in _records(rows[rows["utc"] == measured["utc"].max()].fillna({"reason": ""})):
        head = {name: row[name] for name in ("device", "params", "reason")}
        record = found.setdefault(row["variant"], dict.fromkeys(COST_NUMBERS, float("nan")) | head)
        for name in ("tok_per_s", "ratio"):
            for part, column in (("median", name), ("p20", f"{name}_p20"), ("p80", f"{name}_p80")):
                record[f"{row['mode']}_{name}_{part}"] = row[column]
        if row["mode"] == "train":
            record |= {name: row[name] for name in ("peak_mem_bytes", "peak_mem_factor")}
    return found


def by_key(frame: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], Record]:
    """Index the rows of a frame by the values of some columns."""
    return {tuple(row[key] for key in keys): row for row in _records(frame)}


def _records(frame: pd.DataFrame) -> list[Record]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


@dataclass(frozen=True)
class Measured:
    """A number of one design, seed by seed; `reason` explains the seeds that have none."""

    by_seed: dict[int, float]
    reason: str

    @property
    def estimate(self) -> Estimate | None:
        """Mean and t-interval over the seeds; None if no seed has the number."""
        return over_seeds(list(self.by_seed.values())) if self.by_seed else None

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN if no seed has the number."""
        return self.estimate.mean if self.estimate else float("nan")

    def minus(self, other: "Measured") -> Estimate | None:
        """Difference taken seed by seed, with its t-interval; None without a common seed."""
        if not self.by_seed.keys() & other.by_seed.keys():
            return None
        return paired_difference(self.by_seed, other.by_seed)


def of_designs(frame: pd.DataFrame, value: str) -> dict[tuple[str, str], Measured]:
    """(size, variant) -> a number of its runs."""
    result = {}
    for (size, variant), runs in frame.groupby(["size", "variant"], sort=False):
        reasons = "; ".join(dict.fromkeys(str(text) for text in runs["reason"] if text))
        found = runs.dropna(subset=[value])
        values = dict(zip(found["seed"].astype(int), found[value].astype(float), strict=True))
        result[str(size), str(variant)] = Measured(values, reasons)
    return result


def _read_json(path: Path) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: expected JSON, found: {error}") from None
    if not isinstance(value, dict):
        raise ResultsError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _check(path: Path, found: Record, kinds: Mapping[str, type], needed: Iterable[str] = ()) -> None:
    """Check that entries have their type, `float` for any number; unless they are needed, they may be missing or null.

    Raises:
        ResultsError: one has not.
    """
    for key in needed:
        if found.get(key) is None:
            raise ResultsError(f"{path}: expected a key {key}, found {', '.join(found) or 'none'}")
    for key, kind in kinds.items():
        value = found.get(key)
        allowed = (int, float) if kind is float else kind
        if value is not None and (not isinstance(value, allowed) or isinstance(value, bool)):
            expected = {float: "a number", str: "text", dict: "an object"}[kind]
            raise ResultsError(f"{path}: {key}: expected {expected}, found {value!r}")


def _task_frame(rows: list[Record]) -> pd.DataFrame:
    frame = _frame(rows, numeric=("value", "stderr", "chance", "n"))
    return frame.reindex(columns=[*frame.columns.union(["task", "metric"], sort=False)])


def _frame(rows: list[Record], numeric: tuple[str, ...]) -> pd.DataFrame:
    """Convert rows to a frame that has all numeric columns, with NaN for null."""
    frame = pd.DataFrame(rows)
    for column in numeric:
        frame[column] = pd.to_numeric(frame[column]) if column in frame else float("nan")
    return frame
