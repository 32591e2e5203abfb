"""Paths, and the names that appear in them."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
BASELINE = "baseline"
SPLITS = ("train", "val")
# Under results/<scale>/, as patterns: the Snakefile takes the braces for wildcards, Python fills them with `format`.
DATA_MANIFEST = "data/manifest.json"
RUN = "runs/{size}/{variant}/seed{seed}"
ANY_RUN = RUN.format(size="*", variant="*", seed="*")
EVAL = "evals/{size}/{variant}/seed{seed}"
RANDOM_INIT = "evals/random-init"
COST = "cost/{size}/{variant}.json"
MECHANISM = "mechanism/{size}/{variant}/seed{seed}"
POINT = "points/{size}/{backbone}/{variant}/steps{steps}/lr{rate}/seed{seed}"
STUDY_ROWS = "studies/{study}.csv"  # one row per run of a study
STUDY_DOCUMENTS = "studies/{study}.documents.safetensors"  # the loss of each validation document, one row per run
STUDY_INSIDE = "studies/{study}.inside.csv"  # what was measured inside the models of a study, one number per row
POINT_MECHANISM = "mechanism"  # in the folder of a point: mechanism.json and interventions.json
KEPT_CHECKPOINTS = 2  # newest checkpoints kept per run
SNAPSHOT = "snapshots/step{step:06d}.safetensors"  # weights during training, in the folder of a run
STUDY = "09_study"  # notebook that shows the runs of one study, built by `snakemake study`
# The notebooks that show the results of a scale, and the figures and tables that each shows. The other notebooks are
# derivations and read no results.
DRAWN = {
    "03_architecture": ("figure1", "table6"),
    "08_tasks": (),
    "10_loss_curves": ("figure2", "figure3", "figure4", "table3", "gradients"),
    "11_downstream": ("table1", "table2", "table7", "table8", "accuracies"),
    "12_cost": ("table4", "table5", "compute"),
    "13_evidence": ("controls", "repairs", "gradient-flow", "designs", "effects", "ladder", "copied-tokens"),
    "14_mechanism": ("gates", "overwriting", "interventions"),
    "15_rivals": ("rivals", "rivals-cost", "table-rivals"),
}
# Of these, the figures that `ddl figure` draws from the records of training alone, and the sizes that each shows. The
# others are drawn by their notebook.
CURVES = {"figure2": ("small",), "figure3": ("small", "medium"), "figure4": ("medium",), "gradients": ("medium",)}


@dataclass(frozen=True)
class Point:
    """One run of a study. Studies of one scale share the runs that they have in common."""

    size: str
    backbone: str
    variant: str
    steps: int
    rate: float  # peak learning rate
    seed: int

    @property
    def folder(self) -> str:
        """Path of the run under results/<scale>/."""
        return POINT.format(**vars(self) | {"rate": f"{self.rate:g}"})


def drawn_files(name: str) -> list[str]:
    """Paths of a figure's or table's files under results/<scale>/."""
    if name.startswith("table"):
        return [f"tables/{name}.{kind}" for kind in ("csv", "tex")]
    return [f"figures/{name}.{kind}" for kind in ("pdf", "svg", "png")]
