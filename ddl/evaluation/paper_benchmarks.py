"""Download the paper's eight benchmarks once: `ddl benchmarks` writes results/benchmarks/.

The training and the scored split of each benchmark are stored as Parquet with a manifest, in the layout of the offline
tasks. Evaluations therefore need no network and read the same bytes everywhere. The task definitions are those of
lm-evaluation-harness.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddl.errors import UserError
from ddl.files import atomic, sha256_file, write_json
from ddl.provenance import provenance

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = Path("results/benchmarks")


class PrefetchError(UserError):
    """A dataset that cannot be downloaded, or that is not the pinned one."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its table column, its harness task and metric, and its pinned dataset."""

    column: str
    task: str
    metric: str
    chance: float
    definition: str  # the harness's task definition: a path below lm_eval/tasks
    dataset: str
    configuration: str | None
    revision: str
    split: str  # the split that is scored, in full
    items: int  # number of items in that split


ARC = ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453")
# In the paper's column order. Accuracy is normalised by the length of the answer if the harness offers that, which is
# the custom of the paper's authors. The chance level of ARC counts its few questions with three or five choices as
# having four.
BENCHMARKS = (
    Benchmark(
        "ARC-C", "arc_challenge", "acc_norm", 1 / 4, "arc/arc_challenge.yaml",
        ARC[0], "ARC-Challenge", ARC[1], "test", 1172,
    ),
    Benchmark(
        "ARC-E", "arc_easy", "acc_norm", 1 / 4, "arc/arc_easy.yaml",
        ARC[0], "ARC-Easy", ARC[1], "test", 2376,
    ),
    Benchmark(
        "Hellaswag", "hellaswag", "acc_norm", 1 / 4, "hellaswag/hellaswag.yaml",
        "Rowan/hellaswag", None, "218ec52e09a7e7462a5400043bb9a69a41d06b76", "validation", 10042,
    ),
    Benchmark(
        "OpenBookQA", "openbookqa", "acc_norm", 1 / 4, "openbookqa/openbookqa.yaml",
        "allenai/openbookqa", "main", "388097ea7776314e93a529163e0fea805b8a6454", "test", 500,
    ),
    Benchmark(
        "PIQA", "piqa", "acc_norm", 1 / 2, "piqa/piqa.yaml",
        "baber/piqa", None, "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1", "validation", 1838,
    ),
    Benchmark(
        "SciQ", "sciq", "acc_norm", 1 / 4, "sciq/sciq.yaml",
        "allenai/sciq", None, "2c94ad3e1aafab77146f384e23536f97a4849815", "test", 1000,
    ),
    Benchmark(
        "Social IQA", "social_iqa", "acc", 1 / 3, "siqa/siqa.yaml",
        "lighteval/siqa", None, "54c6a1f8cb6daf4f5abf24a601852612fb35eb25", "validation", 1954,
    ),
    Benchmark(
        "WG", "winogrande", "acc", 1 / 2, "winogrande/default.yaml",
        "allenai/winogrande", "winogrande_xl", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", "validation", 1267,
    ),
)  # fmt: skip


def prefetch(folder: Path, benchmarks: tuple[Benchmark, ...] = BENCHMARKS) -> dict[str, Any]:
    """Write `<task>.{train,test}.parquet` and `manifest.json`; "test" is the split that is scored, under any name.

    Returns:
        The manifest, in the same form as that of `ddl.evaluation.offline_tasks.build`.

    Raises:
        PrefetchError: a dataset cannot be reached at its revision, or its number of items differs.
    """
    tasks = {}
    for benchmark in benchmarks:
        entry: dict[str, Any] = {
            "column": benchmark.column,
            "metric": benchmark.metric,
            "n": benchmark.items,
            "chance": benchmark.chance,
            "definition": benchmark.definition,
            "dataset": benchmark.dataset,
            "configuration": benchmark.configuration,
            "revision": benchmark.revision,
            "split": benchmark.split,
        }
        for name, split in (("train", "train"), ("test", benchmark.split)):
            data = download(benchmark, split)
            if name == "test" and len(data) != benchmark.items:
                raise PrefetchError(
                    f"{benchmark.task}: expected {benchmark.items} items in the {split} split of {benchmark.dataset}, "
                    f"found {len(data)}"
                )
            path = folder / f"{benchmark.task}.{name}.parquet"
            with atomic(path) as temporary:
                data.to_parquet(temporary)
            entry[name] = {"file": path.name, "n": len(data), "sha256": sha256_file(path)}
        tasks[benchmark.task] = entry
        print(
            f"{benchmark.task}: {benchmark.dataset} at {benchmark.revision[:10]}, {benchmark.items} items", flush=True
        )
    manifest = {"tasks": tasks, "provenance": provenance()}
    write_json(folder / "manifest.json", manifest)
    return manifest


def download(benchmark: Benchmark, split: str) -> "Dataset":
    """Load one split from the hub or its cache.

    Raises:
        PrefetchError: the split is neither cached nor reachable.
    """
    from datasets import load_dataset

    try:
        return load_dataset(benchmark.dataset, benchmark.configuration, split=split, revision=benchmark.revision)
    except (OSError, ValueError, RuntimeError) as error:
        where = " ".join(filter(None, (benchmark.dataset, benchmark.configuration)))
        raise PrefetchError(
            f"{benchmark.task}: dataset {where} at revision {benchmark.revision} is neither cached nor reachable "
            f"({type(error).__name__}): run ddl benchmarks on a machine with a network and copy {FOLDER} here"
        ) from None
