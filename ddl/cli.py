"""The command line `ddl`: one command per step, in the order in which data flows.

A command checks its arguments and calls a function of one sub-package. It imports that sub-package in its body, so that
`ddl --help` and a mistyped option do not wait seconds for torch.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddl.config import FAMILIES, SHOTS, SIZES, Scale, Study, load_scale, load_study
from ddl.errors import INTERRUPTED, UserError, refused
from ddl.layout import CURVES
from ddl.setting_ranges import MOST_SEED

if TYPE_CHECKING:
    from ddl.training.checkpoints import Stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `ddl`; None means the arguments of this process.

    Returns:
        The exit code. A user's mistake, or what the machine refuses, prints one line to stderr and returns 2; any other
        exception is raised.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return commands.main(arguments, prog_name="ddl", standalone_mode=False, obj=arguments) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        return error.exit_code
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except click.Abort as stopped:
        if isinstance(stopped.__cause__, EOFError):  # click treats an early end of file as Ctrl-D
            raise
        return INTERRUPTED
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if (reason := refused(error)) is None:
            raise
        click.echo(f"error: {reason}", err=True)
        return 2


class InOrder(click.Group):
    """A group whose help lists the commands in the order of their definition."""

    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


# ---------------------------------------------------------------------------------------------------------------------
# Option types and shared options


class ScaleName(click.ParamType):
    """The name of a file in config/scales, converted to a `Scale`."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Scale:
        return value if isinstance(value, Scale) else load_scale(value)


class StudyName(click.ParamType):
    """The name of a file in config/studies, converted to a `Study`."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Study:
        return value if isinstance(value, Study) else load_study(value)


class Finite(click.FloatRange):
    """A finite number in a range.

    NaN has to be rejected explicitly: no comparison with a bound excludes it.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class Listed(click.ParamType):
    """Values separated by commas, converted to a tuple."""

    def __init__(self, item: click.ParamType) -> None:
        self.item = item
        self.name = f"{item.name} list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(self.item.convert(part, param, ctx) for part in parts)


class JsonObject(click.ParamType):
    """A JSON object, converted to a dict."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            values = json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"{value!r} is not JSON: {error}.", param, ctx)
        if not isinstance(values, dict):
            self.fail(f"expected a JSON object, found {value!r}.", param, ctx)
        return values


class Output(click.Path):
    """A file or folder to write, below a folder where this process may create it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(super().convert(value, param, ctx))  # type: ignore[arg-type]  # mypy: no file descriptor is given
        folders = (path, *path.parents) if path.is_dir() else path.parents  # a file is replaced, not written to
        existing = next(folder for folder in folders if folder.exists())
        if not existing.is_dir():
            self.fail(f"cannot create {path}: {existing} is a file.", param, ctx)
        try:
            with tempfile.TemporaryFile(dir=existing):
                return path
        except OSError as error:
            self.fail(f"cannot write {path}: {existing} takes no files: {error.strerror}.", param, ctx)


class Text(click.ParamType):
    """Text that the terminal passed as UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            str(value).encode("utf-8")
        except UnicodeEncodeError:
            self.fail(f"{value!a} is not UTF-8.", param, ctx)
        return str(value)


FOLDER = click.Path(file_okay=False, path_type=Path)  # if it is missing, the command reports which command makes it
KNOWN_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
OUT_FOLDER = Output(file_okay=False)
OUT_FILE = Output(dir_okay=False)
SEED = click.IntRange(0, MOST_SEED)

Decorator = Callable[[Callable], Callable]


def option(name: str, kind: click.ParamType, help: str, metavar: str, **settings: Any) -> Decorator:
    """An option that is required unless it has a default, which its help then shows."""
    settings = {"required": "default" not in settings, "show_default": True} | settings
    return click.option(name, type=kind, metavar=metavar, help=help, **settings)


def together(*decorators: Decorator) -> Decorator:
    """Combine decorators into one; the first is the outermost."""

    def decorate(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


of_scale = option("--scale", ScaleName(), "Name of a file in config/scales, e.g. laptop.", "NAME")
of_size = click.option("--size", type=click.Choice(SIZES), required=True, help="Size of the model.")
of_variant = option("--variant", click.STRING, "Residual design: a name in config/variants.yaml.", "NAME")
from_data = option("--data", FOLDER, "Folder that `ddl data` wrote, e.g. results/laptop/data.", "FOLDER")
from_results = option("--results", KNOWN_FOLDER, "Results of a scale, e.g. results/laptop.", "FOLDER")
of_training = together(
    option("--seed", SEED, "Seed of the initial weights and the data order.", "N"),
    from_data,
    option("--out", OUT_FOLDER, "Folder for metrics, checkpoints and weights of the run.", "FOLDER"),
    option(
        "--processes",
        click.IntRange(1),
        "Processes that share each batch, one per GPU, on each node; torchrun starts more than one.",
        "N",
        default=1,
    ),
    click.option(
        "--nodes",
        type=click.IntRange(1),
        metavar="N",
        help="Machines that share each batch, one unless given; run the command on each.",
    ),
    click.option(
        "--rendezvous", metavar="HOST:PORT", help="Where several nodes find each other: a port of one of them."
    ),
    click.option(
        "--restart", is_flag=True, help="Start from step 0 if code or settings changed since the checkpoints."
    ),
    click.option("--continue-anyway", is_flag=True, help="Continue from checkpoints even if code or settings changed."),
)


def on_stale(restart: bool, continue_anyway: bool) -> "Stale":
    """Turn the two flags into what happens to checkpoints from other code or settings."""
    if restart and continue_anyway:
        raise click.UsageError("--restart and --continue-anyway exclude each other.")
    return "restart" if restart else "continue" if continue_anyway else "refuse"


def start_processes(
    arguments: list[str], scale: Scale, processes: int, nodes: int | None, rendezvous: str | None
) -> None:
    """Check the processes of a run; if there is more than one, run this command in each of them, and exit."""
    from ddl.training.batches import check_shares
    from ddl.training.distributed import Nodes, check_devices

    if rendezvous and nodes is None:
        raise click.UsageError("--rendezvous needs --nodes.")
    machines = Nodes(nodes or 1, processes, rendezvous)
    check_shares(scale.training, machines.count * processes)
    check_devices(scale.training, processes)
    machines.start(arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def commands() -> None:
    """Reproduce the paper "Deep Delta Learning".

    Commands are listed in the order in which data flows. `snakemake --cores all` runs the whole workflow for one scale.
    """


@commands.command()
@of_scale
@option("--out", OUT_FOLDER, "Folder to write, e.g. results/laptop/data.", "FOLDER")
@option(
    "--max-tokens",
    click.IntRange(1),
    "Maximum number of training tokens.",
    "N",
    default=None,
    show_default="corpus.max_train_tokens of the scale",
)
@option(
    "--workers",
    click.IntRange(1),
    "Number of tokenising processes.",
    "N",
    default=os.cpu_count,
    show_default="all cores",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Replace the finished shards of a large corpus if settings, sources or code changed since.",
)
def data(scale: Scale, out: Path, max_tokens: int | None, workers: int, restart: bool) -> None:
    """Build the tokenizer and token shards of a scale."""
    from dataclasses import replace

    from ddl.data.build import build

    if max_tokens is not None:
        scale = replace(scale, corpus=scale.corpus.with_limit(max_tokens))
    build(scale, out, workers, restart)


@commands.command()
def package_manifests() -> None:
    """Overwrite the manifests of the packages' text.

    config/package_docs.json and config/package_sources.json list documents, bytes and SHA-256 of the packages that the
    corpora `package-docs` and `package-sources` read; `ddl data` checks a corpus against them. Run this after upgrading
    one of the packages.
    """
    from ddl.data.documents import make_package_manifests

    make_package_manifests()


@commands.command()
def benchmarks() -> None:
    """Download the paper's eight benchmarks.

    They are saved in results/benchmarks, at pinned revisions. No other evaluation command needs the network.
    """
    from ddl.evaluation.paper_benchmarks import FOLDER, prefetch

    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when `datasets` is imported
    prefetch(FOLDER)


@commands.command()
@of_scale
@from_data
@option("--out", OUT_FOLDER, "Folder for the items, e.g. results/laptop/data/tasks.", "FOLDER")
def tasks(scale: Scale, data: Path, out: Path) -> None:
    """Build the eight offline tasks from held-out documents."""
    from ddl.evaluation.lm_eval_tasks import write_definitions
    from ddl.evaluation.offline_tasks.build import build_tasks, report

    built = build_tasks(scale, data, out)
    write_definitions(out)
    report(built)


@commands.command()
@of_scale
@of_size
@of_variant
@of_training
@click.pass_obj
def train(
    arguments: list[str],
    scale: Scale,
    size: str,
    variant: str,
    seed: int,
    data: Path,
    out: Path,
    processes: int,
    nodes: int | None,
    rendezvous: str | None,
    restart: bool,
    continue_anyway: bool,
) -> int:
    """Train one model.

    If interrupted, run the same command again to continue from the last checkpoint.
    """
    stale = on_stale(restart, continue_anyway)
    from ddl.training.run import Run

    start_processes(arguments, scale, processes, nodes, rendezvous)
    done = Run(scale, size, variant, seed, data / "manifest.json", out, stale=stale).train()
    return 0 if done else INTERRUPTED


@commands.group()
def study() -> None:
    """Train and collect the runs of a study."""


@study.command()
@of_scale
@of_size
@option("--backbone", click.STRING, "What all designs share: a name in config/backbones.yaml.", "NAME")
@of_variant
@option("--steps", click.IntRange(1), "Number of steps; the schedule is stretched to it.", "N")
@option("--rate", Finite(min=0, min_open=True), "Peak learning rate.", "RATE")
@of_training
@click.pass_obj
def point(
    arguments: list[str],
    scale: Scale,
    size: str,
    backbone: str,
    variant: str,
    steps: int,
    rate: float,
    seed: int,
    data: Path,
    out: Path,
    processes: int,
    nodes: int | None,
    rendezvous: str | None,
    restart: bool,
    continue_anyway: bool,
) -> int:
    """Train one model of a study and measure its validation loss."""
    stale = on_stale(restart, continue_anyway)
    from ddl.layout import Point
    from ddl.studies.points import train

    start_processes(arguments, scale, processes, nodes, rendezvous)
    done = train(scale, Point(size, backbone, variant, steps, rate, seed), data / "manifest.json", out, stale)
    return 0 if done else INTERRUPTED


@study.command()
@option("--study", StudyName(), "Name of a file in config/studies, e.g. noise.", "NAME")
@from_results
@click.option("--reuse", is_flag=True, help="Take committed rows of the same settings for runs that are not there.")
@click.option("--partial", is_flag=True, help="Leave out runs that have not been trained.")
def collect(study: Study, results: Path, reuse: bool, partial: bool) -> None:
    """Write one row per run of a study, and the losses by document."""
    from ddl.studies.rows import collect

    click.echo(f"{collect(study, results, reuse, partial)} of {len(study.points())} runs")


@study.command()
@option("--study", StudyName(), "Name of a file in config/studies with `inside: true`.", "NAME")
@from_results
@click.option("--reuse", is_flag=True, help="Take committed rows of the same settings for runs that are not there.")
@click.option("--partial", is_flag=True, help="Leave out runs that have not been trained.")
def inside(study: Study, results: Path, reuse: bool, partial: bool) -> None:
    """Write what was measured inside the models of a study, one number per row."""
    from ddl.studies.inside import collect_inside

    click.echo(f"{collect_inside(study, results, reuse, partial)} of {len(study.points())} runs")


@commands.command()
@of_scale
@from_data
@option("--run", KNOWN_FOLDER, "Folder of a trained model.", "FOLDER")
@option("--out", OUT_FOLDER, "Folder for validation.json.", "FOLDER")
def validate(scale: Scale, data: Path, run: Path, out: Path) -> None:
    """Measure the loss (nats) on the whole validation split."""
    from ddl.evaluation.validation import validate

    validate(scale, run, data, out)


@commands.command()
@option("--run", KNOWN_FOLDER, "Folder of a trained model, from this package or transformers.", "FOLDER", default=None)
@click.option("--random-init", is_flag=True, help="Instead of --run: use untrained weights of --size and --variant.")
@click.option("--size", type=click.Choice(SIZES), help="With --random-init: size of the model.")
@option("--variant", click.STRING, "With --random-init: a name in config/variants.yaml.", "NAME", default=None)
@option(
    "--scale",
    ScaleName(),
    "With --data: measure as the workflow does at this scale.",
    "NAME",
    default=None,
)
@option("--data", FOLDER, "With --scale: data of that scale, e.g. results/laptop/data.", "FOLDER", default=None)
@option(
    "--items",
    FOLDER,
    "Folder of the tasks.",
    "FOLDER",
    default=None,
    show_default="the tasks of the scale, else results/benchmarks",
)
@option(
    "--tasks",
    Listed(click.STRING),
    "Names of the tasks to run.",
    "NAME,NAME",
    default=(),
    show_default="all in the folder",
)
@option(
    "--shots",
    Listed(click.IntRange(0)),
    "Number of demonstrations in the prompt of an item.",
    "N,N",
    default=SHOTS,
    show_default=",".join(map(str, SHOTS)),
)
@option(
    "--out",
    OUT_FOLDER,
    "Folder for the results, required with --scale.",
    "FOLDER",
    default=None,
    show_default="results are only printed",
)
def evaluate(
    run: Path | None,
    random_init: bool,
    size: str | None,
    variant: str | None,
    scale: Scale | None,
    data: Path | None,
    items: Path | None,
    tasks: tuple[str, ...],
    shots: tuple[int, ...],
    out: Path | None,
) -> None:
    """Measure the accuracy (%) on tasks.

    With --run alone, measure a model from this package or transformers on the paper's benchmarks or on the tasks in
    --items. With --scale, --data and --out, measure as the workflow does.
    """
    source: Path | tuple[str, str]
    if run and not (random_init or size or variant):
        source = run
    elif random_init and size and variant and not run:
        source = (size, variant)
    else:
        raise click.UsageError("expected either --run, or --random-init with --size and --variant.")
    from ddl.evaluation.run import evaluate_in_scale, evaluate_run

    if scale and data and out and not tasks and shots == SHOTS:
        evaluate_in_scale(scale, source, data, items, out)
    elif run and not (scale or data):
        evaluate_run(run, items, out, tasks, shots)
    else:
        raise click.UsageError(
            "give --scale, --data and --out together and without --tasks and --shots; --random-init requires them."
        )


@commands.command()
@of_scale
@from_data
@option("--run", KNOWN_FOLDER, "Folder of a trained model of that scale.", "FOLDER")
@option("--out", OUT_FOLDER, "Folder for mechanism.json and interventions.json.", "FOLDER")
def mechanism(scale: Scale, data: Path, run: Path, out: Path) -> None:
    """Observe the residual rules of a model, and change them.

    The rules are observed at the end and at every snapshot of the run. Each is then changed at test time, e.g. its gate
    closed, and the loss (nats) of each validation document measured.
    """
    from ddl.studies.inside import look_inside

    look_inside(scale, run, data, out)


@commands.command()
@of_scale
@from_data
@option("--out", OUT_FOLDER, "Folder for contamination.json and contamination.parquet, e.g. results/laptop.", "FOLDER")
def contamination(scale: Scale, data: Path, out: Path) -> None:
    """Look for evaluation items in the training shards.

    An item counts as contaminated if it shares an n-gram of 8 or 13 tokens with them.
    """
    from ddl.evaluation.contamination import write_contamination

    write_contamination(scale, data, out)


@commands.command()
@of_scale
@of_size
@option("--out", OUT_FOLDER, "Folder for one JSON file per variant, e.g. results/laptop/cost/small.", "FOLDER")
def cost(scale: Scale, size: str, out: Path) -> None:
    """Measure speed (tokens/s) and peak memory (bytes)."""
    from ddl.training.cost import measure

    measure(scale, size, out)


@commands.command()
@of_scale
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    multiple=True,
    default=("paper", "own"),
    show_default=True,
    help="Family of designs; can be repeated.",
)
def describe(scale: Scale, family: tuple[str, ...]) -> None:
    """Print parameters, FLOPs and state of each design.

    For a scale that needs GPUs, the last line estimates the hours on several cards.
    """
    from ddl.model.flops import describe

    click.echo(describe(scale, family))
    if scale.recipe.gpus:
        from ddl.reporting.budget import hours_by_card

        click.echo(hours_by_card(scale))


@commands.command()
@option("--run", KNOWN_FOLDER, "Folder of a trained model.", "FOLDER")
@option("--prompt", Text(), "Text to continue.", "TEXT")
@option("--tokens", click.IntRange(1), "Maximum number of tokens to generate.", "N", default=64)
@option("--temperature", Finite(min=0), "Sampling temperature; 0 takes the most likely token.", "T", default=0.8)
@option("--seed", SEED, "Seed for sampling at a temperature above 0.", "N", default=0)
@click.option("--no-cache", is_flag=True, help="Process the whole text again for every token.")
def generate(run: Path, prompt: str, tokens: int, temperature: float, seed: int, no_cache: bool) -> None:
    """Continue a prompt, and print the speed in tokens/s."""
    from ddl.model.generate import write_on

    write_on(run, prompt, tokens, temperature, seed, not no_cache)


@commands.command()
@click.argument("results", type=FOLDER)
def progress(results: Path) -> None:
    """Show the progress of the runs of a scale.

    RESULTS is the folder of the scale, e.g. results/laptop. In a terminal the table refreshes until Ctrl-C; otherwise
    it is printed once.
    """
    from ddl.reporting.progress import watch

    watch(results)


@commands.command()
@click.argument("notebook", type=FILE)
@option("--html", OUT_FILE, "HTML page to write.", "FILE")
@option("--parameters", JsonObject(), "Values for its parameters cell, as a JSON object.", "JSON", default="{}")
def notebook(notebook: Path, html: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook and write it as a standalone HTML page.

    NOTEBOOK is a py:percent file.
    """
    from ddl.reporting.render_notebook import CellFailure, run_notebook

    try:
        run_notebook(notebook, html, parameters)
    except CellFailure as error:
        raise click.ClickException(str(error)) from None


@commands.command()
@from_results
@option("--name", click.Choice(list(CURVES)), "Name of the figure.", "NAME")
def figure(results: Path, name: str) -> None:
    """Draw a figure of the trainings from their records."""
    from ddl.reporting.loss_figures import write_figure

    write_figure(results, name)


@commands.command()
@from_results
def numbers(results: Path) -> None:
    """Write numbers.json, the numbers quoted in the paper."""
    from ddl.reporting.quoted_numbers import report

    report(results)


@commands.command()
@from_results
def verdict(results: Path) -> None:
    """Write verdict.json, the judged claims of the paper."""
    from ddl.reporting.judged_claims import write_verdicts

    write_verdicts(results)


@commands.command()
@from_results
@option("--out", OUT_FILE, "PDF to write, e.g. results/laptop/paper.pdf.", "FILE")
def paper(results: Path, out: Path) -> None:
    """Typeset the paper with the results of one scale."""
    from ddl.reporting.typeset_paper import compile_paper

    compile_paper(results, out)


@commands.command()
@from_results
@option("--out", OUT_FOLDER, "Folder to write, e.g. results/laptop/site.", "FOLDER")
def site(results: Path, out: Path) -> None:
    """Build the site of one scale, which opens from disk."""
    from ddl.reporting.site import build_site

    build_site(results, out)


@commands.command()
@from_results
@option("--name", click.STRING, "Name of the folder in results/reference.", "NAME")
def keep(results: Path, name: str) -> None:
    """Keep the small files of a run in results/reference."""
    from ddl.reporting.keep_reference import keep

    keep(results, name)


@commands.command()
@from_results
@click.option("--name", metavar="NAME", help="Name of the folder in results/reference; without it, that of the scale.")
def compare(results: Path, name: str | None) -> None:
    """Compare the losses of a scale with committed ones.

    Each difference is judged by the spread that the study `noise` finds between seeds.
    """
    from ddl.reporting.compare_reference import report

    click.echo(report(results, name))


@commands.command()
@option("--name", click.STRING, "Name of the folder in results/reference.", "NAME")
def readme(name: str) -> None:
    """Write the generated parts of README.md and docs/."""
    from ddl.reporting.readme import readme

    readme(name)


@commands.command("lm-eval", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run lm-evaluation-harness with the model type ddl.

    All arguments go to the harness, e.g. --model ddl --model_args pretrained=DIR --tasks lambada_openai.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    sys.argv = ["lm-eval", *arguments]
    harness = HarnessCLI()
    parsed = harness.parse_args()  # exits here on --help or a mistake, before the slow imports
    import ddl.evaluation.lm_eval_model
    import ddl.model.transformers_model  # noqa: F401 - `--model hf` loads our runs too

    try:
        harness.execute(parsed)
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(str(error)) from None  # how transformers reports a model that it cannot find or read
