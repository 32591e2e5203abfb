# From a corpus to the paper: data -> training -> evaluation and cost -> figures and tables -> paper.
# The scale is part of every path, so any file of any scale is a target, e.g. results/paper/figures/figure2.pdf.

import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from ddl import layout
from ddl.code_identity import code_identity
from ddl.config import (
    SHOTS,
    SIZES,
    ConfigError,
    changed_settings,
    load_backbones,
    load_scale,
    load_study,
    load_variants,
    scale_names,
    study_names,
)
from ddl.layout import CURVES, DRAWN, STUDY, drawn_files
from ddl.locks import WorkflowLock
from ddl.reporting.workflow_messages import Messages, say
from ddl.studies.inside import reusable
from ddl.studies.rows import committed

min_version("9.27")


configfile: "config/config.yaml"


# Rules use the `ddl` of the Python that runs Snakemake. The output of a job goes to its log, which is shown on failure.
shell.prefix(f"set -euo pipefail; export PATH={os.path.dirname(sys.executable)}:$PATH; ")

STALE = {"refuse": "", "restart": "--restart", "continue": "--continue-anyway"}
try:
    SCALES = {name: load_scale(name) for name in scale_names()}
    for scale in SCALES.values():
        for size in scale.sizes:
            for variant in load_variants():
                scale.model(size, variant)
    DEFAULT = load_scale(config["scale"]).name
    VARIANTS = SCALES[DEFAULT].variants  # those of every scale
    STUDIES = {name: load_study(name) for name in study_names()}
    CHOSEN = load_study(config["study"])
    if type(config["reuse"]) is not bool:
        raise ConfigError(f"reuse: expected true or false, found {config['reuse']!r}")
    if config["stale"] not in STALE:
        raise ConfigError(f"stale: expected one of {', '.join(STALE)}, found {config['stale']!r}")
except ConfigError as error:
    raise WorkflowError(str(error))

RUN = f"results/{{scale}}/{layout.RUN}"
EVAL = f"results/{{scale}}/{layout.EVAL}"
RANDOM_INIT = f"results/{{scale}}/{layout.RANDOM_INIT}"
MECHANISM = f"results/{{scale}}/{layout.MECHANISM}"
POINT = f"results/{{scale}}/{layout.POINT}"
COST = f"results/{{scale}}/{layout.COST}"
TEMPLATE = [f"notebooks/template/{name}" for name in ("index.html.j2", "style.css")]  # of a notebook's page
NOTEBOOKS = list(DRAWN)
DERIVATIONS = sorted({path.stem for path in Path("notebooks").glob("*.py")} - {*DRAWN, STUDY})
PUBLISHED = [f"paper/published/{name}.csv" for name in ("validation_loss", "downstream_accuracy", "cost")]
NOISE_ROWS = sorted(str(path) for path in Path("results/reference").glob("studies/noise.csv"))
NOISE_ROWS += sorted(str(path) for path in Path("results/reference").glob("rounding.csv"))
DESIGN_SPEEDS = [str(path) for path in [Path("results/reference/designs.csv")] if path.is_file()]
REFERENCE_ROWS = sorted(str(path) for path in Path("results/reference/studies").glob("*.csv"))
GPU_ROWS = sorted(str(path) for path in Path("results/reference").glob("*/end_to_end.csv"))


# On a cluster these rules run next to Snakemake, because a cluster job would take longer than the work itself.
localrules:
    benchmarks,
    derivation_page,
    numbers,
    paper,


wildcard_constraints:
    backbone="|".join(load_backbones()),
    rate=r"[\d.e-]+",
    scale="|".join(SCALES),
    size="small|medium",
    steps=r"\d+",
    study="|".join(STUDIES),
    variant="|".join(load_variants()),  # a control is trained and evaluated if its files are targets
    seed=r"\d+",


# Besides its input files, a rule depends on its `params`: the code that it runs, without comments and docstrings, and
# the settings that differ from their defaults. If one of these changes, the rule runs again.


def settings(*names):
    """Settings of a scale, by name."""
    return lambda wildcards: {name: changed_settings(SCALES[wildcards.scale])[name] for name in names}


def run_settings(wildcards):
    """Settings that determine one run, excluding other variants and sizes."""
    return SCALES[wildcards.scale].determining(wildcards.size, wildcards.variant)


def cost_settings(wildcards):
    """Settings of all models of one size, and how they are executed and measured."""
    scale = SCALES[wildcards.scale]
    models = {variant: scale.model(wildcards.size, variant).determining() for variant in VARIANTS}
    return models, settings("execution", "cost")(wildcards), scale.training.dtype, scale.training.threads


def report_settings(wildcards):
    """Settings that figures and tables show besides the results: names, shapes and recipe."""
    values = settings("title", "sequence_length", "seeds", "sizes", "tokenizer")(wildcards)
    return values, SCALES[wildcards.scale].recipe.determining(), [variant.label for variant in VARIANTS.values()]


def derivation_settings(wildcards):
    """Settings of all scales that derivations show and check: shapes, execution and recipes."""
    names = ("sequence_length", "sizes", "tokenizer", "execution")
    shown = {scale.name: {name: changed_settings(scale)[name] for name in names} for scale in SCALES.values()}
    return shown, {scale.name: scale.recipe.determining() for scale in SCALES.values()}


def recipe(name):
    """A training setting of the scale."""
    return lambda wildcards: getattr(SCALES[wildcards.scale].training, name)


def on_stale_checkpoints(wildcards):
    """What training does if all checkpoints come from other code or settings.

    Runs that need no GPU are cheap, so the default for them is to restart.
    """
    cheap = recipe("gpus")(wildcards) == 0
    return STALE["restart" if cheap and config["stale"] == "refuse" else config["stale"]]


def threads_of_data(wildcards):
    return workflow.cores if SCALES[wildcards.scale].corpus.large else 2


def all_cores(wildcards):
    return workflow.cores


def of_every_run(scale, *patterns, sizes=SIZES):
    """Expand patterns over all variants and seeds of a scale, at all sizes or some."""
    wildcards = {"scale": scale.name, "size": sizes, "variant": VARIANTS, "seed": scale.seeds}
    return list(dict.fromkeys(expand(patterns, **wildcards)))


def every_run(pattern, sizes=SIZES):
    return lambda wildcards: of_every_run(SCALES[wildcards.scale], *flatten([pattern]), sizes=sizes)


def scale_at(wildcards):
    """The scale of one run of a study."""
    own = layout.Point(
        wildcards.size,
        wildcards.backbone,
        wildcards.variant,
        int(wildcards.steps),
        float(wildcards.rate),
        int(wildcards.seed),
    )
    return SCALES[wildcards.scale].at(own)


def points_without(reused, file):
    """A file of every run of a study, without the runs whose committed rows are reused."""

    def files(wildcards):
        study = STUDIES[wildcards.study]
        known = reused(study) if config["reuse"] else ()
        return [f"results/{study.scale}/{point.folder}/{file}" for point in study.points() if point not in known]

    return files


def files_of(names):
    """Files of figures and tables."""
    return [f"results/{{scale}}/{file}" for name in names for file in drawn_files(name)]


def drawn(*notebooks):
    """Files of all figures and tables that the notebooks show."""
    return files_of(name for notebook in notebooks for name in DRAWN[notebook])


def own(notebook):
    """Names of the figures and tables that a notebook draws itself."""
    return [name for name in DRAWN[notebook] if name not in CURVES]


def task_files(wildcards):
    """Manifest of the offline tasks or of the benchmarks, whichever the scale evaluates."""
    offline = SCALES[wildcards.scale].evaluation.tasks == "offline"
    return f"results/{wildcards.scale}/data/tasks/manifest.json" if offline else rules.benchmarks.output.manifest


messages = Messages(DEFAULT)
# Snakemake reads this file before it looks for locks, and jobs on a cluster read it too.
if workflow.is_main_process:
    lock = WorkflowLock(Path(".snakemake"))
    if lock.removed:
        say("removed the lock of a Snakemake that no longer runs; its work continues")


def everything():
    """Whether the whole default scale was asked for."""
    return "all" in {rule.name for rule in workflow.dag.targetrules}


onstart:
    measured = [(job.benchmark, job.threads) for job in workflow.dag.needrun_jobs() if job.benchmark]
    messages.start(len(workflow.dag), measured, workflow.resource_settings.cores, whole=everything())


onsuccess:
    messages.finish(whole=everything())


# All results of a scale. Each file is listed, so that a deleted file is built again.
rule all:
    input:
        expand(
            [
                *drawn(*NOTEBOOKS),
                *(f"results/{{scale}}/notebooks/{{page}}.{kind}" for kind in ("html", "ipynb")),
                "results/{scale}/{file}",
            ],
            scale=DEFAULT,
            page=[*NOTEBOOKS, *DERIVATIONS],
            file=["numbers.json", "verdict.json", "paper.pdf", "site/index.html"],
        ),
        of_every_run(
            SCALES[DEFAULT],
            *(f"{RUN}/{name}" for name in ("model.safetensors", "config.json", "metrics.jsonl", "summary.json")),
            *(f"{EVAL}/{shots}shot.{kind}" for shots in SHOTS for kind in ("json", "parquet")),
            f"{EVAL}/validation.json",
            COST,
        ),
    message:
        f"all results of the scale {DEFAULT}"


# Tokenizer and token shards. The manifest lists every file with its SHA-256, which is checked whenever a file is read.
rule data:
    input:
        packages=lambda wildcards: getattr(SCALES[wildcards.scale].corpus, "manifest", []),
    output:
        manifest=f"results/{{scale}}/{layout.DATA_MANIFEST}",
        tokenizer="results/{scale}/data/tokenizer.json",
    log:
        "results/{scale}/logs/data.log",
    benchmark:
        "results/{scale}/benchmarks/data.tsv"
    threads: threads_of_data
    resources:
        mem_mb=8000,
        on_stale=STALE["restart"] if config["stale"] == "restart" else "",
    params:
        code=code_identity("ddl.data.build"),
        settings=settings("corpus", "tokenizer"),
    message:
        "data ({wildcards.scale}): tokenizer and token shards"
    shell:
        "ddl data --scale {wildcards.scale} --out $(dirname {output.manifest}) --workers {threads} {resources.on_stale}"
        " > {log} 2>&1"


# The paper's eight benchmarks, downloaded once for all scales. No other evaluation step needs the network.
rule benchmarks:
    output:
        manifest="results/benchmarks/manifest.json",
    log:
        "results/benchmarks/prefetch.log",
    params:
        code=code_identity("ddl.evaluation.paper_benchmarks"),
    message:
        "download the eight benchmarks"
    shell:
        "ddl benchmarks > {log} 2>&1"


# The eight offline tasks, built from held-out documents.
rule tasks:
    input:
        data=rules.data.output.manifest,
    output:
        manifest="results/{scale}/data/tasks/manifest.json",
    log:
        "results/{scale}/logs/tasks.log",
    benchmark:
        "results/{scale}/benchmarks/tasks.tsv"
    params:
        code=code_identity("ddl.evaluation.offline_tasks.build", "ddl.evaluation.lm_eval_tasks"),
        settings=settings("evaluation", "sequence_length"),
        shots=SHOTS,
    message:
        "tasks ({wildcards.scale}): eight offline tasks from held-out documents"
    shell:
        "ddl tasks --scale {wildcards.scale} --data $(dirname {input.data}) --out $(dirname {output.manifest})"
        " > {log} 2>&1"


# Train one model. Checkpoints are next to the outputs, in a folder named after a fingerprint of settings, data and code.
# The log of a training that is continued is continued too.
rule train:
    input:
        data=rules.data.output.manifest,
    output:
        multiext(f"{RUN}/", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"),
        config=f"{RUN}/config.json",
        weights=f"{RUN}/model.safetensors",
        metrics=f"{RUN}/metrics.jsonl",
        gradients=f"{RUN}/gradients.csv",
        summary=f"{RUN}/summary.json",
        provenance=f"{RUN}/provenance.json",
    log:
        "results/{scale}/logs/train/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/train/{size}-{variant}-seed{seed}.tsv"
    # Long jobs start first, so that no core idles at the end.
    priority: 10
    threads: recipe("threads")
    # GPUs and flags are resources, not `params`, because changing them is no reason to train again.
    resources:
        gpu=recipe("gpus"),
        mem_mb=4000,
        on_stale=on_stale_checkpoints,
    params:
        code=code_identity("ddl.training.run"),
        settings=run_settings,
    message:
        "train {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl train --scale {wildcards.scale} --size {wildcards.size} --variant {wildcards.variant}"
        " --seed {wildcards.seed} --data $(dirname {input.data}) --out $(dirname {output.weights})"
        " --processes $(({resources.gpu} ? {resources.gpu} : 1)) {resources.on_stale} >> {log} 2>&1"


# One run of a study. `rule all` excludes studies, so their logs and times have their own folders.
rule study_point:
    input:
        data=rules.data.output.manifest,
    output:
        row=f"{POINT}/point.json",
    log:
        f"{POINT}/train.log",
    benchmark:
        f"{POINT}/train.tsv"
    threads: recipe("threads")
    resources:
        gpu=recipe("gpus"),
        mem_mb=4000,
        on_stale=on_stale_checkpoints,
    params:
        code=code_identity("ddl.studies.points"),
        settings=lambda wildcards: scale_at(wildcards).determining(wildcards.size, wildcards.variant),
    message:
        "study point {wildcards.size}/{wildcards.backbone}/{wildcards.variant}, {wildcards.steps} steps, rate {wildcards.rate}, "
        "seed {wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl study point --scale {wildcards.scale} --size {wildcards.size} --backbone {wildcards.backbone}"
        " --variant {wildcards.variant} --steps {wildcards.steps} --rate {wildcards.rate} --seed {wildcards.seed}"
        " --data $(dirname {input.data}) --out $(dirname {output.row}) --processes $(({resources.gpu} ? {resources.gpu} : 1)) {resources.on_stale}"
        " >> {log} 2>&1"


rule study_rows:
    input:
        points=points_without(committed, "point.json"),
    output:
        rows=f"results/{{scale}}/{layout.STUDY_ROWS}",
        documents=f"results/{{scale}}/{layout.STUDY_DOCUMENTS}",
    log:
        "results/{scale}/studies/logs/{study}.log",
    params:
        code=code_identity("ddl.studies.rows"),
        points=lambda wildcards: [point.folder for point in STUDIES[wildcards.study].points()],
        reuse="--reuse" if config["reuse"] else "",
    message:
        "studies/{wildcards.study}.csv ({wildcards.scale})"
    shell:
        "ddl study collect --study {wildcards.study} --results results/{wildcards.scale} {params.reuse} > {log} 2>&1"


# What the rules of a study's model do, and its loss when they do otherwise.
rule point_mechanism:
    input:
        data=rules.data.output.manifest,
        row=rules.study_point.output.row,
    output:
        observed=f"{POINT}/{layout.POINT_MECHANISM}/mechanism.json",
        interventions=f"{POINT}/{layout.POINT_MECHANISM}/interventions.json",
    log:
        f"{POINT}/mechanism.log",
    threads: recipe("threads")
    resources:
        gpu=recipe("gpus"),
        mem_mb=4000,
    params:
        code=code_identity("ddl.studies.inside", "ddl.evaluation.mechanism"),
        settings=settings("evaluation"),
    message:
        "mechanism of study point {wildcards.size}/{wildcards.backbone}/{wildcards.variant}, seed {wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl mechanism --scale {wildcards.scale} --data $(dirname {input.data}) --run $(dirname {input.row})"
        " --out $(dirname {output.observed}) > {log} 2>&1"


rule study_inside:
    input:
        points_without(reusable, f"{layout.POINT_MECHANISM}/interventions.json"),
    output:
        f"results/{{scale}}/{layout.STUDY_INSIDE}",
    log:
        "results/{scale}/studies/logs/{study}-inside.log",
    params:
        code=code_identity("ddl.studies.inside"),
        points=lambda wildcards: [point.folder for point in STUDIES[wildcards.study].points()],
        reuse="--reuse" if config["reuse"] else "",
    message:
        "studies/{wildcards.study}.inside.csv ({wildcards.scale})"
    shell:
        "ddl study inside --study {wildcards.study} --results results/{wildcards.scale} {params.reuse} > {log} 2>&1"


rule notebook_study:
    input:
        rows=rules.study_rows.output.rows,
        documents=rules.study_rows.output.documents,
        notebook=f"notebooks/{STUDY}.py",
        template=TEMPLATE,
    output:
        html="results/{scale}/studies/{study}.html",
        executed="results/{scale}/studies/{study}.ipynb",
    log:
        "results/{scale}/studies/logs/{study}-notebook.log",
    params:
        code=code_identity("ddl.reporting.render_notebook", f"notebooks/{STUDY}.py"),
        settings=lambda wildcards: (STUDIES[wildcards.study].title, STUDIES[wildcards.study].about),
        values=lambda wildcards: json.dumps({"study": wildcards.study, "results": f"results/{wildcards.scale}"}),
    message:
        "studies/{wildcards.study}.html ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Loss on the whole validation split.
rule validate:
    input:
        data=rules.data.output.manifest,
        config=rules.train.output.config,
        weights=rules.train.output.weights,
    output:
        validation=f"{EVAL}/validation.json",
    log:
        "results/{scale}/logs/validate/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/validate/{size}-{variant}-seed{seed}.tsv"
    threads: recipe("threads")
    resources:
        gpu=recipe("gpus"),
        mem_mb=4000,
    params:
        code=code_identity("ddl.evaluation.validation"),
        settings=settings("evaluation"),
    message:
        "validate {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl validate --scale {wildcards.scale} --data $(dirname {input.data}) --run $(dirname {input.weights})"
        " --out $(dirname {output.validation}) > {log} 2>&1"


# Accuracy on the eight tasks at 0 and 1 shot.
rule evaluate:
    input:
        data=rules.data.output.manifest,
        tasks=task_files,
        config=rules.train.output.config,
        weights=rules.train.output.weights,
    output:
        scores=[f"{EVAL}/{shots}shot.json" for shots in SHOTS],
        answers=[f"{EVAL}/{shots}shot.parquet" for shots in SHOTS],
    log:
        "results/{scale}/logs/evaluate/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/evaluate/{size}-{variant}-seed{seed}.tsv"
    threads: recipe("threads")
    resources:
        gpu=recipe("gpus"),
        mem_mb=4000,
    params:
        code=code_identity("ddl.evaluation.run"),
        settings=settings("evaluation"),
        shots=SHOTS,
        model=f"--run {RUN}",
    message:
        "evaluate {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl evaluate --scale {wildcards.scale} --data $(dirname {input.data}) {params.model}"
        " --out $(dirname {output.scores[0]}) > {log} 2>&1"


# A check of the tasks: an untrained model must score at chance level.
use rule evaluate as evaluate_random_init with:
    input:
        data=rules.data.output.manifest,
        tasks=task_files,
    output:
        scores=[f"{RANDOM_INIT}/{shots}shot.json" for shots in SHOTS],
        answers=[f"{RANDOM_INIT}/{shots}shot.parquet" for shots in SHOTS],
    log:
        "results/{scale}/logs/evaluate/random-init.log",
    benchmark:
        "results/{scale}/benchmarks/evaluate/random-init.tsv"
    params:
        model="--random-init --size small --variant baseline",
        untrained=lambda wildcards: SCALES[wildcards.scale].model("small", "baseline").determining(),
    message:
        "evaluate a model with random weights ({wildcards.scale})"


# What the residual rules of a trained model do, at the end and at its snapshots, and its loss when they do otherwise.
rule mechanism:
    input:
        data=rules.data.output.manifest,
        config=rules.train.output.config,
        weights=rules.train.output.weights,
        summary=rules.train.output.summary,
    output:
        observed=f"{MECHANISM}/mechanism.json",
        interventions=f"{MECHANISM}/interventions.json",
    log:
        "results/{scale}/logs/mechanism/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/mechanism/{size}-{variant}-seed{seed}.tsv"
    threads: recipe("threads")
    resources:
        gpu=recipe("gpus"),
        mem_mb=4000,
    params:
        code=code_identity("ddl.evaluation.mechanism"),
        settings=settings("evaluation"),
        snapshots=recipe("snapshots"),
    message:
        "mechanism {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl mechanism --scale {wildcards.scale} --data $(dirname {input.data}) --run $(dirname {input.weights})"
        " --out $(dirname {output.observed}) > {log} 2>&1"


# Overlap between evaluation items and training shards.
rule contamination:
    input:
        data=rules.data.output.manifest,
        tasks=task_files,
    output:
        multiext("results/{scale}/contamination", summary=".json", answers=".parquet"),
    log:
        "results/{scale}/logs/contamination.log",
    benchmark:
        "results/{scale}/benchmarks/contamination.tsv"
    params:
        code=code_identity("ddl.evaluation.contamination"),
        settings=settings("evaluation"),
    message:
        "contamination ({wildcards.scale}): evaluation items in the training data"
    shell:
        "ddl contamination --scale {wildcards.scale} --data $(dirname {input.data}) --out $(dirname {output.summary})"
        " > {log} 2>&1"


# Speed and memory of all variants of one size, measured in turn. The job uses the whole machine.
rule cost:
    output:
        expand(COST, variant=VARIANTS, allow_missing=True),
    log:
        "results/{scale}/logs/cost/{size}.log",
    benchmark:
        "results/{scale}/benchmarks/cost/{size}.tsv"
    threads: all_cores
    resources:
        gpu=recipe("gpus"),
        mem_mb=8000,
    params:
        code=code_identity("ddl.training.cost"),
        settings=cost_settings,
    message:
        "cost {wildcards.size} ({wildcards.scale}): all variants in turn"
    shell:
        "ddl cost --scale {wildcards.scale} --size {wildcards.size} --out results/{wildcards.scale}/cost/{wildcards.size}"
        " > {log} 2>&1"


# Derivations use functions of the package but no results: run once, and copy the page to every scale.
rule derivation:
    input:
        notebook="notebooks/{notebook}.py",
        template=TEMPLATE,
        settings=["config/variants.yaml", "config/scales/paper.yaml"],
        claims="paper/claims.csv",
        kept=["results/reference/kernels/gradient_error.csv", "results/reference/kernels/rebuilt_states.csv"],
    output:
        html="results/notebooks/{notebook}.html",
        executed="results/notebooks/{notebook}.ipynb",
    log:
        "results/notebooks/logs/{notebook}.log",
    benchmark:
        "results/notebooks/benchmarks/{notebook}.tsv"
    wildcard_constraints:
        notebook="|".join(DERIVATIONS),
    params:
        code=lambda wildcards: code_identity("ddl.reporting.render_notebook", f"notebooks/{wildcards.notebook}.py"),
        settings=derivation_settings,
    message:
        "notebook {wildcards.notebook}"
    shell:
        "ddl notebook {input.notebook} --html {output.html} > {log} 2>&1"


rule derivation_page:
    input:
        page=rules.derivation.output.html,
        executed=rules.derivation.output.executed,
        times="results/notebooks/benchmarks/{notebook}.tsv",
    output:
        page="results/{scale}/notebooks/{notebook}.html",
        executed="results/{scale}/notebooks/{notebook}.ipynb",
        times="results/{scale}/benchmarks/notebooks/{notebook}.tsv",
    log:
        "results/{scale}/logs/notebooks/{notebook}.log",
    wildcard_constraints:
        notebook="|".join(DERIVATIONS),
    message:
        "notebook {wildcards.notebook} ({wildcards.scale}), run once for all scales"
    shell:
        "(cp {input.page} {output.page} && cp {input.executed} {output.executed} && cp {input.times} {output.times})"
        " 2> {log}"


# A figure of the trainings needs the records of the sizes that it shows, and nothing else.
for figure, sizes in CURVES.items():

    rule:
        name:
            f"draw_{figure}"
        input:
            published=PUBLISHED,
            metrics=every_run(rules.train.output.metrics, sizes),
            gradients=every_run(rules.train.output.gradients, sizes),
            summaries=every_run(rules.train.output.summary, sizes),
        output:
            files_of([figure]),
        log:
            f"results/{{scale}}/logs/notebooks/{figure}.log",
        benchmark:
            f"results/{{scale}}/benchmarks/notebooks/{figure}.tsv"
        params:
            code=code_identity("ddl.reporting.loss_figures"),
            settings=report_settings,
            figure=figure,
        message:
            f"{figure} ({{wildcards.scale}})"
        shell:
            "ddl figure --results results/{wildcards.scale} --name {params.figure} > {log} 2>&1"


# The files that each notebook reads. `DRAWN` lists the figures and tables that it shows.
READ = {
    "03_architecture": dict(
        paper="config/scales/paper.yaml",
        published=[f"paper/published/{name}.csv" for name in ("architecture", "cost")],
    ),
    "08_tasks": dict(
        tasks=task_files,
        random_init=rules.evaluate_random_init.output,
        contamination=rules.contamination.output,
    ),
    "10_loss_curves": dict(
        published=PUBLISHED,
        noise=NOISE_ROWS,
        metrics=every_run(rules.train.output.metrics),
        gradients=every_run(rules.train.output.gradients),
        summaries=every_run(rules.train.output.summary),
        validation=every_run(rules.validate.output.validation),
    ),
    "11_downstream": dict(
        published=PUBLISHED,
        tasks=task_files,
        summaries=every_run(rules.train.output.summary),
        scores=every_run(rules.evaluate.output.scores),
        answers=every_run(rules.evaluate.output.answers),
        random_init=rules.evaluate_random_init.output,
        contamination=rules.contamination.output,
    ),
    "12_cost": dict(
        published=PUBLISHED,
        noise=NOISE_ROWS,
        metrics=every_run(rules.train.output.metrics),
        cost=every_run(COST),
        gpu=GPU_ROWS,
        summaries=every_run(rules.train.output.summary),
        validation=every_run(rules.validate.output.validation),
        scores=every_run(rules.evaluate.output.scores),
    ),
    "13_evidence": dict(published=PUBLISHED, rows=REFERENCE_ROWS),
    "14_mechanism": dict(
        summaries=every_run(rules.train.output.summary),
        mechanism=every_run(f"{MECHANISM}/mechanism.json"),
        interventions=every_run(f"{MECHANISM}/interventions.json"),
        studies=REFERENCE_ROWS,
    ),
    "15_rivals": dict(rows=REFERENCE_ROWS, speeds=DESIGN_SPEEDS),
}
for notebook, results in READ.items():

    rule:
        name:
            f"notebook_{notebook}"
        input:
            **results,
            notebook=f"notebooks/{notebook}.py",
            template=TEMPLATE,
            claims="paper/claims.csv",
        output:
            files_of(own(notebook)),
            html=f"results/{{scale}}/notebooks/{notebook}.html",
            executed=f"results/{{scale}}/notebooks/{notebook}.ipynb",
        log:
            f"results/{{scale}}/logs/notebooks/{notebook}.log",
        benchmark:
            f"results/{{scale}}/benchmarks/notebooks/{notebook}.tsv"
        params:
            code=code_identity("ddl.reporting.render_notebook", f"notebooks/{notebook}.py"),
            settings=report_settings,
            values=lambda wildcards: json.dumps({"results": f"results/{wildcards.scale}"}),
        message:
            f"notebook {notebook} ({{wildcards.scale}}): {', '.join(own(notebook)) or 'no figure'}"
        shell:
            "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Every number quoted in the paper's text and the README.
rule numbers:
    input:
        published=PUBLISHED,
        data=rules.data.output.manifest,
        tasks=task_files,
        summaries=every_run(rules.train.output.summary),
        provenance=every_run(rules.train.output.provenance),
        validation=every_run(rules.validate.output.validation),
        scores=every_run(rules.evaluate.output.scores),
        answers=every_run(rules.evaluate.output.answers),
        random_init=rules.evaluate_random_init.output,
        cost=every_run(COST),
        choices="paper/choices.csv",
        studies=REFERENCE_ROWS,
    output:
        numbers="results/{scale}/numbers.json",
    log:
        "results/{scale}/logs/numbers.log",
    benchmark:
        "results/{scale}/benchmarks/numbers.tsv"
    params:
        code=code_identity("ddl.reporting.quoted_numbers"),
        settings=report_settings,
    message:
        "numbers.json ({wildcards.scale})"
    shell:
        "ddl numbers --results $(dirname {output.numbers}) > {log} 2>&1"


# Every claim of the paper, judged by the committed studies.
rule verdict:
    input:
        published=PUBLISHED,
        rows=REFERENCE_ROWS,
    output:
        verdict="results/{scale}/verdict.json",
    log:
        "results/{scale}/logs/verdict.log",
    params:
        code=code_identity("ddl.reporting.judged_claims"),
    message:
        "verdict.json ({wildcards.scale})"
    shell:
        "mkdir -p results/{wildcards.scale} && ddl verdict --results results/{wildcards.scale} > {log} 2>&1"


rule paper:
    input:
        sources=["paper/main.typ", "paper/template.typ", "paper/refs.bib"],
        published=[*PUBLISHED, "paper/published/architecture.csv"],
        drawn=drawn(*NOTEBOOKS),
        numbers=rules.numbers.output.numbers,
    output:
        pdf="results/{scale}/paper.pdf",
    log:
        "results/{scale}/logs/paper.log",
    benchmark:
        "results/{scale}/benchmarks/paper.tsv"
    params:
        code=code_identity("ddl.reporting.typeset_paper"),
    message:
        "results/{wildcards.scale}/paper.pdf"
    shell:
        "ddl paper --results $(dirname {output.pdf}) --out {output.pdf} > {log} 2>&1"


# A folder that opens from disk: start page, notebooks with links between them, figures, tables and the paper.
rule site:
    input:
        pages=expand("results/{{scale}}/notebooks/{page}.html", page=sorted([*NOTEBOOKS, *DERIVATIONS])),
        notebooks=[f"notebooks/{page}.py" for page in sorted([*NOTEBOOKS, *DERIVATIONS])],
        template=["notebooks/template/start.html.j2", "notebooks/template/style.css"],
        drawn=drawn(*NOTEBOOKS),
        numbers=rules.numbers.output.numbers,
        verdict=rules.verdict.output.verdict,
        paper=rules.paper.output.pdf,
        metrics=every_run(rules.train.output.metrics),
        studies=REFERENCE_ROWS,
        claims="paper/claims.csv",
    output:
        start="results/{scale}/site/index.html",
    log:
        "results/{scale}/logs/site.log",
    benchmark:
        "results/{scale}/benchmarks/site.tsv"
    params:
        code=code_identity("ddl.reporting.site"),
    message:
        "results/{wildcards.scale}/site/index.html"
    shell:
        "ddl site --results results/{wildcards.scale} --out results/{wildcards.scale}/site > {log} 2>&1"


# All runs of one study and its page: `snakemake --cores all study --config study=noise`.
rule study:
    input:
        f"results/{CHOSEN.scale}/studies/{CHOSEN.name}.html",
        [f"results/{CHOSEN.scale}/{layout.STUDY_INSIDE.format(study=CHOSEN.name)}"] if CHOSEN.inside else [],
    message:
        f"study {CHOSEN.name}: {CHOSEN.title}"


# Short names at the default scale: `snakemake --cores all figure2`.
for name in [name for names in DRAWN.values() for name in names]:

    rule:
        name:
            name
        input:
            [f"results/{DEFAULT}/{file}" for file in drawn_files(name)],
        message:
            f"{name} of the scale {DEFAULT}"
