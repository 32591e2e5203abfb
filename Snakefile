# From a corpus to the paper: data -> 12 trainings -> evaluations and costs -> figures and tables -> paper.
# The scale is part of every path, so any file of any scale is a target: results/paper/figures/figure2.pdf.

import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from ddl.config import SHOTS, ConfigError, load_scale, load_variants, scale_names, to_mapping

min_version("9.27")


configfile: "config/config.yaml"


# `ddl` in every rule is that of the Python that runs Snakemake; a command that fails fails its job, also in front of a pipe.
shell.prefix(f"set -euo pipefail; export PATH={os.path.dirname(sys.executable)}:$PATH; ")

try:
    SCALES = {name: load_scale(name) for name in scale_names()}
    VARIANTS = list(load_variants())
    for scale in SCALES.values():
        for size in scale.sizes:
            for variant in VARIANTS:
                scale.model(size, variant)
    DEFAULT = load_scale(config["scale"]).name
except ConfigError as error:
    raise WorkflowError(str(error))

RUN = "results/{scale}/runs/{size}/{variant}/seed{seed}"
EVAL = "results/{scale}/evals/{size}/{variant}/seed{seed}"


# On a cluster these run where Snakemake does: a job of their own would take longer than they do.
localrules:
    benchmarks,
    numbers,
    paper,


wildcard_constraints:
    rate=r"[\d.e-]+",
    scale="|".join(SCALES),
    size="small|medium",
    variant="|".join(VARIANTS),
    seed=r"\d+",


def source(*modules):
    """Package files that determine an output; a change in one of them reruns the rule."""
    return [f"ddl/{name}.py" for name in ("__init__", "config", "provenance", *modules)]


MODEL = (
    "model",
    "cache",
    "residual",
    "ops/__init__",
    "ops/dispatch",
    "ops/rewrite",
    "ops/expand",
    "ops/compress",
    "ops/step",
    "ops/step_cpu",
    "ops/cross_entropy",
    "ops/launch",
    "ops/rewrite_triton",
    "ops/expand_triton",
    "ops/compress_triton",
    "ops/step_triton",
    "ops/cross_entropy_triton",
)
TRAINING = (
    "learner",
    "distributed",
    "batches",
    "stops",
    "tokenizer",
    "sequences",
    "shards",
)
TASKS = ("tasks", "items", "passages", "tokenizer", "sequences", "shards")
REPORT = ("report", "results", "tables", "numbers", "downstream", "prefetch", "uncertainty")
TEMPLATE = [str(path) for path in sorted(Path("notebooks/template").rglob("*")) if path.is_file()]
PUBLISHED = [f"paper/published/{name}.csv" for name in ("validation_loss", "downstream_accuracy", "cost")]
GPU_ROWS = [str(path) for path in sorted(Path("results/reference").glob("*/end_to_end.csv"))]
SWEEP = "09_learning_rate"  # dear, and a target of its own: `snakemake --cores all sweep`
FIGURES = range(1, 5)
TABLES = range(1, 9)
POINT = "results/{scale}/sweep/{size}/{variant}/lr{rate}/seed{seed}/point.json"
COST = "results/{scale}/cost/{size}/{variant}.json"


def settings(*sections):
    """Those settings of a scale that a rule depends on: a change in one of them reruns the rule, in others not."""

    def of(wildcards):
        values = to_mapping(SCALES[wildcards.scale])
        return json.dumps({name: values[name] for name in sections}, sort_keys=True)

    return of


def run_settings(wildcards):
    """Settings of one run, without those of the other variants and sizes."""
    scale = SCALES[wildcards.scale]
    model = to_mapping(scale.model(wildcards.size, wildcards.variant))
    return json.dumps({"model": model, "training": scale.training.determining()}, sort_keys=True)


def point_settings(wildcards):
    """Settings of one run of a sweep: those of a run, and how many steps it has; its rate is in its path."""
    settings = json.loads(run_settings(wildcards)) | {"steps": SCALES[wildcards.scale].sweep.steps}
    return json.dumps(settings, sort_keys=True)


def every_point(wildcards):
    """point.json of every run of a scale's sweep."""
    scale = SCALES[wildcards.scale]
    return expand(
        POINT,
        scale=scale.name,
        size=scale.sweep.sizes,
        variant=scale.sweep.variants,
        rate=[f"{rate:g}" for rate in scale.sweep.learning_rates],
        seed=scale.seeds,
    )


def cost_settings(wildcards):
    """Settings of a cost measurement: all models of its size, their precision and threads."""
    scale = SCALES[wildcards.scale]
    models = {variant: to_mapping(scale.model(wildcards.size, variant)) for variant in VARIANTS}
    recipe = {"dtype": scale.training.dtype, "threads": scale.training.threads}
    return json.dumps({"models": models, "training": recipe, "cost": to_mapping(scale.cost)}, sort_keys=True)


def titles(wildcards):
    """What figures and tables call the scale and the variants."""
    labels = [variant.label for variant in load_variants().values()]
    return json.dumps([SCALES[wildcards.scale].title, labels])


def every_run(pattern):
    """The pattern for all sizes, variants and seeds of its scale."""

    def of(wildcards):
        scale = SCALES[wildcards.scale]
        return expand(
            pattern,
            scale=scale.name,
            size=list(scale.sizes),
            variant=VARIANTS,
            seed=scale.seeds,
        )

    return of


def every_variant(pattern):
    """The pattern for all sizes and variants of its scale."""

    def of(wildcards):
        scale = SCALES[wildcards.scale]
        return expand(pattern, scale=scale.name, size=list(scale.sizes), variant=VARIANTS)

    return of


def notebook_parameters(wildcards):
    return json.dumps({"results": f"results/{wildcards.scale}"})


def task_files(wildcards):
    """Offline tasks are made from held-out documents; the benchmarks come from the hub."""
    offline = SCALES[wildcards.scale].evaluation.tasks == "offline"
    return f"results/{wildcards.scale}/data/tasks/manifest.json" if offline else rules.benchmarks.output.manifest


def all_cores(wildcards):
    return workflow.cores


def threads_of_data(wildcards):
    """Billions of tokens are worth all cores."""
    return workflow.cores if SCALES[wildcards.scale].corpus.large else 2


def threads_of_run(wildcards):
    return SCALES[wildcards.scale].training.threads


def gpus_of_run(wildcards):
    return SCALES[wildcards.scale].training.gpus


onstart:
    for path in sorted(Path("results/reference").glob(f"{DEFAULT}-*/times.json")):
        known = json.loads(path.read_text())
        print(
            f"The whole {DEFAULT} scale took {known['wall_seconds'] / 60:.0f} minutes with {known['cores']} cores in the run"
            f" that is kept in {path.parent}. Logs: results/{DEFAULT}/logs/",
            file=sys.stderr,
        )


# Everything that a scale promises is a target of its own, so that a file that is lost is made again.
rule all:
    default_target: True
    input:
        expand(
            f"results/{DEFAULT}/{{file}}",
            file=[
                "paper.pdf",
                "numbers.json",
                *(f"figures/figure{n}.{kind}" for n in FIGURES for kind in ("pdf", "svg", "png")),
                *(f"tables/table{n}.{kind}" for n in TABLES for kind in ("csv", "tex")),
                *(
                    f"notebooks/{path.stem}.html"
                    for path in sorted(Path("notebooks").glob("*.py"))
                    if path.stem != SWEEP
                ),
            ],
        ),
        expand(
            [f"{RUN}/{file}" for file in ("model.safetensors", "config.json", "metrics.jsonl", "summary.json")]
            + [
                f"{EVAL}/{file}"
                for file in ("validation.json", *(f"{n}shot.{kind}" for n in SHOTS for kind in ("json", "parquet")))
            ],
            scale=DEFAULT,
            size=list(SCALES[DEFAULT].sizes),
            variant=VARIANTS,
            seed=SCALES[DEFAULT].seeds,
        ),
        expand(COST, scale=DEFAULT, size=list(SCALES[DEFAULT].sizes), variant=VARIANTS),


# Documents, tokenizer and token shards; the manifest names every file with its SHA-256, and whoever reads them checks it.
rule data:
    input:
        code=source("data", "corpus", "dedup", "encode", "hub", "shards", "splits", "tokenizer"),
        packages="config/package_docs.json",
    output:
        manifest="results/{scale}/data/manifest.json",
        tokenizer="results/{scale}/data/tokenizer.json",
    log:
        "results/{scale}/logs/data.log",
    benchmark:
        "results/{scale}/benchmarks/data.tsv"
    threads: threads_of_data
    resources:
        mem_mb=8000,
    params:
        settings=settings("corpus", "tokenizer"),
    message:
        "data ({wildcards.scale}): corpus, tokenizer, shards"
    shell:
        "ddl data --scale {wildcards.scale} --out results/{wildcards.scale}/data --workers {threads}"
        " 2>&1 | tee -i {log}"


# The paper's eight benchmarks, once for all scales; the only evaluation step that needs a network.
rule benchmarks:
    input:
        code=source("prefetch"),
    output:
        manifest="results/benchmarks/manifest.json",
    log:
        "results/benchmarks/prefetch.log",
    message:
        "the eight benchmarks, from the hub"
    shell:
        "ddl benchmarks 2>&1 | tee -i {log}"


# The eight offline tasks, from held-out documents.
rule tasks:
    input:
        manifest=rules.data.output.manifest,
        code=source(*TASKS),
    output:
        manifest="results/{scale}/data/tasks/manifest.json",
    log:
        "results/{scale}/logs/tasks.log",
    benchmark:
        "results/{scale}/benchmarks/tasks.tsv"
    resources:
        mem_mb=4000,
    params:
        settings=settings("evaluation", "sequence_length"),
    message:
        "tasks ({wildcards.scale}): eight offline tasks from held-out documents"
    shell:
        "ddl tasks --scale {wildcards.scale} --data results/{wildcards.scale}/data"
        " --out results/{wildcards.scale}/data/tasks 2>&1 | tee -i {log}"


# One of the twelve models. Checkpoints lie beside the outputs, under a fingerprint of settings, data and code.
rule train:
    input:
        manifest=rules.data.output.manifest,
        code=source("train", "checkpoints", "metrics", *TRAINING, *MODEL),
    output:
        multiext(f"{RUN}/", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        config=f"{RUN}/config.json",
        weights=f"{RUN}/model.safetensors",
        metrics=f"{RUN}/metrics.jsonl",
        summary=f"{RUN}/summary.json",
        provenance=f"{RUN}/provenance.json",
    log:
        "results/{scale}/logs/train/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/train/{size}-{variant}-seed{seed}.tsv"
    # The long jobs start first, so that no core waits at the end.
    priority: 10
    threads: threads_of_run
    resources:
        gpu=gpus_of_run,
        mem_mb=4000,
    params:
        settings=run_settings,
    message:
        "train {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl train --scale {wildcards.scale} --size {wildcards.size} --variant {wildcards.variant}"
        " --seed {wildcards.seed} --data results/{wildcards.scale}/data"
        " --out results/{wildcards.scale}/runs/{wildcards.size}/{wildcards.variant}/seed{wildcards.seed}"
        " --processes {resources.gpu} 2>&1 | tee -i {log}"


# One run with a learning rate of its own. Logs and times lie with the sweep, which is no part of the whole workflow.
rule sweep_point:
    input:
        manifest=rules.data.output.manifest,
        code=source("sweep", "train", "checkpoints", "metrics", *TRAINING, *MODEL),
    output:
        point=POINT,
    log:
        "results/{scale}/sweep/logs/{size}-{variant}-lr{rate}-seed{seed}.log",
    benchmark:
        "results/{scale}/sweep/benchmarks/{size}-{variant}-lr{rate}-seed{seed}.tsv"
    threads: threads_of_run
    resources:
        gpu=gpus_of_run,
        mem_mb=4000,
    params:
        settings=point_settings,
    message:
        "sweep {wildcards.size}/{wildcards.variant}/lr{wildcards.rate}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl study point --scale {wildcards.scale} --size {wildcards.size} --variant {wildcards.variant}"
        " --rate {wildcards.rate} --seed {wildcards.seed} --data results/{wildcards.scale}/data"
        " --out $(dirname {output.point}) --processes {resources.gpu} 2>&1 | tee -i {log}"


rule sweep_rows:
    input:
        points=every_point,
        code=source("sweep", "train", "checkpoints", "metrics", *TRAINING, *MODEL),
    output:
        rows="results/{scale}/sweep.csv",
    log:
        "results/{scale}/sweep/logs/rows.log",
    params:
        settings=settings("sweep"),
    message:
        "sweep.csv ({wildcards.scale})"
    shell:
        "ddl study collect --scale {wildcards.scale} --results results/{wildcards.scale} > {log} 2>&1"


# Validation loss against the learning rate.
rule learning_rate:
    input:
        notebook="notebooks/09_learning_rate.py",
        template=TEMPLATE,
        rows=rules.sweep_rows.output.rows,
        code=source("notebook", *REPORT),
    output:
        multiext("results/{scale}/figures/learning_rate", ".pdf", ".svg", ".png"),
        html="results/{scale}/notebooks/09_learning_rate.html",
    log:
        "results/{scale}/sweep/logs/notebook.log",
    benchmark:
        "results/{scale}/sweep/benchmarks/notebook.tsv"
    resources:
        mem_mb=2000,
    params:
        values=notebook_parameters,
        titles=titles,
        settings=settings("training"),
    message:
        "learning rates ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Loss on the whole validation split, and the eight tasks at 0 and 1 shot.
rule evaluate:
    input:
        manifest=rules.data.output.manifest,
        tasks=task_files,
        config=rules.train.output.config,
        weights=rules.train.output.weights,
        code=source("evaluate", "adapter", "harness", "prefetch", "scoring", "sequences", "shards", "tokenizer", *MODEL),
    output:
        validation=f"{EVAL}/validation.json",
        zero_shot=multiext(f"{EVAL}/0shot", ".json", ".parquet"),
        one_shot=multiext(f"{EVAL}/1shot", ".json", ".parquet"),
    log:
        "results/{scale}/logs/evaluate/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/evaluate/{size}-{variant}-seed{seed}.tsv"
    threads: threads_of_run
    resources:
        gpu=gpus_of_run,
        mem_mb=4000,
    params:
        settings=settings("evaluation"),
    message:
        "evaluate {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "ddl evaluate --scale {wildcards.scale} --data results/{wildcards.scale}/data"
        " --run results/{wildcards.scale}/runs/{wildcards.size}/{wildcards.variant}/seed{wildcards.seed}"
        " --out results/{wildcards.scale}/evals/{wildcards.size}/{wildcards.variant}/seed{wildcards.seed}"
        " > {log} 2>&1"


# A model that has learned nothing must score at chance: the tasks' own check.
rule evaluate_random_init:
    input:
        manifest=rules.data.output.manifest,
        tasks=task_files,
        code=source("evaluate", "adapter", "harness", "prefetch", "scoring", "sequences", "shards", "tokenizer", *MODEL),
    output:
        zero_shot=multiext("results/{scale}/evals/random-init/0shot", ".json", ".parquet"),
        one_shot=multiext("results/{scale}/evals/random-init/1shot", ".json", ".parquet"),
    log:
        "results/{scale}/logs/evaluate/random-init.log",
    benchmark:
        "results/{scale}/benchmarks/evaluate/random-init.tsv"
    threads: threads_of_run
    resources:
        gpu=gpus_of_run,
        mem_mb=4000,
    params:
        settings=settings("evaluation", "sizes"),
    message:
        "evaluate a model with random weights ({wildcards.scale})"
    shell:
        "ddl evaluate --scale {wildcards.scale} --data results/{wildcards.scale}/data"
        " --random-init --size small --variant baseline --out results/{wildcards.scale}/evals/random-init"
        " > {log} 2>&1"


# What of the evaluation items occurs in the training shards.
rule contamination:
    input:
        manifest=rules.data.output.manifest,
        tasks=task_files,
        code=source("contamination", "harness", "prefetch", "sequences", "shards", "tokenizer"),
    output:
        multiext("results/{scale}/contamination", ".json", ".parquet"),
    log:
        "results/{scale}/logs/contamination.log",
    benchmark:
        "results/{scale}/benchmarks/contamination.tsv"
    resources:
        mem_mb=4000,
    params:
        settings=settings("evaluation"),
    message:
        "contamination ({wildcards.scale}): evaluation items in the training data"
    shell:
        "ddl contamination --scale {wildcards.scale} --data results/{wildcards.scale}/data"
        " --out results/{wildcards.scale} 2>&1 | tee -i {log}"


# The data card of the tasks, with their checks.
rule data_card:
    input:
        notebook="notebooks/08_tasks.py",
        template=TEMPLATE,
        tasks=task_files,
        random_init=rules.evaluate_random_init.output,
        contamination=rules.contamination.output,
        code=source("notebook", "contamination", "harness", "prefetch", "results", "tables", *TASKS),
    output:
        html="results/{scale}/notebooks/08_tasks.html",
    log:
        "results/{scale}/logs/notebooks/08_tasks.log",
    benchmark:
        "results/{scale}/benchmarks/notebooks/08_tasks.tsv"
    resources:
        mem_mb=2000,
    params:
        values=notebook_parameters,
        titles=titles,
    message:
        "data card of the tasks ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Speed and memory of all variants of one size, interleaved; the job has the machine for itself.
rule cost:
    input:
        code=source("cost", "learner", "distributed", *MODEL),
    output:
        expand(COST, variant=VARIANTS, allow_missing=True),
    log:
        "results/{scale}/logs/cost/{size}.log",
    benchmark:
        "results/{scale}/benchmarks/cost/{size}.tsv"
    threads: all_cores
    resources:
        gpu=gpus_of_run,
        mem_mb=8000,
    params:
        settings=cost_settings,
    message:
        "cost {wildcards.size} ({wildcards.scale}): six variants, interleaved"
    shell:
        "ddl cost --scale {wildcards.scale} --size {wildcards.size}"
        " --out results/{wildcards.scale}/cost/{wildcards.size} 2>&1 | tee -i {log}"


# Derivations: no data, but real functions of the package.
rule derivation:
    input:
        notebook="notebooks/{name}.py",
        settings=["config/variants.yaml", "config/scales/paper.yaml"],
        claims="paper/claims.csv",
        template=TEMPLATE,
        code=source("notebook", *REPORT, *MODEL),
    output:
        html="results/{scale}/notebooks/{name}.html",
    log:
        "results/{scale}/logs/notebooks/{name}.log",
    benchmark:
        "results/{scale}/benchmarks/notebooks/{name}.tsv"
    wildcard_constraints:
        name=r"0[124567]_\w+",
    resources:
        mem_mb=2000,
    params:
        values=notebook_parameters,
    message:
        "notebook {wildcards.name} ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Figure 1 and Table 6.
rule architecture:
    input:
        notebook="notebooks/03_architecture.py",
        template=TEMPLATE,
        published="paper/published/architecture.csv",
        code=source("notebook", *REPORT, *MODEL),
    output:
        multiext("results/{scale}/figures/figure1", ".pdf", ".svg", ".png"),
        multiext("results/{scale}/tables/table6", ".csv", ".tex"),
        html="results/{scale}/notebooks/03_architecture.html",
    log:
        "results/{scale}/logs/notebooks/03_architecture.log",
    benchmark:
        "results/{scale}/benchmarks/notebooks/03_architecture.tsv"
    resources:
        mem_mb=2000,
    params:
        values=notebook_parameters,
        settings=settings("sizes", "tokenizer", "sequence_length"),
    message:
        "Figure 1, Table 6 ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Figures 2, 3 and 4, Table 3.
rule loss_curves:
    input:
        notebook="notebooks/10_loss_curves.py",
        template=TEMPLATE,
        published=PUBLISHED,
        metrics=every_run(rules.train.output.metrics),
        summaries=every_run(rules.train.output.summary),
        validation=every_run(rules.evaluate.output.validation),
        code=source("notebook", *REPORT),
    output:
        multiext("results/{scale}/figures/figure2", ".pdf", ".svg", ".png"),
        multiext("results/{scale}/figures/figure3", ".pdf", ".svg", ".png"),
        multiext("results/{scale}/figures/figure4", ".pdf", ".svg", ".png"),
        multiext("results/{scale}/tables/table3", ".csv", ".tex"),
        html="results/{scale}/notebooks/10_loss_curves.html",
    log:
        "results/{scale}/logs/notebooks/10_loss_curves.log",
    benchmark:
        "results/{scale}/benchmarks/notebooks/10_loss_curves.tsv"
    resources:
        mem_mb=2000,
    params:
        values=notebook_parameters,
        titles=titles,
    message:
        "Figures 2 to 4, Table 3 ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Tables 1 and 2 (1-shot), 7 and 8 (0-shot).
rule downstream:
    input:
        notebook="notebooks/11_downstream.py",
        template=TEMPLATE,
        published=PUBLISHED,
        tasks=task_files,
        summaries=every_run(rules.train.output.summary),
        zero_shot=every_run(rules.evaluate.output.zero_shot),
        one_shot=every_run(rules.evaluate.output.one_shot),
        random_init=rules.evaluate_random_init.output,
        contamination=rules.contamination.output,
        code=source("notebook", *REPORT),
    output:
        multiext("results/{scale}/tables/table1", ".csv", ".tex"),
        multiext("results/{scale}/tables/table2", ".csv", ".tex"),
        multiext("results/{scale}/tables/table7", ".csv", ".tex"),
        multiext("results/{scale}/tables/table8", ".csv", ".tex"),
        html="results/{scale}/notebooks/11_downstream.html",
    log:
        "results/{scale}/logs/notebooks/11_downstream.log",
    benchmark:
        "results/{scale}/benchmarks/notebooks/11_downstream.tsv"
    resources:
        mem_mb=2000,
    params:
        values=notebook_parameters,
        titles=titles,
    message:
        "Tables 1, 2, 7 and 8 ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Tables 4 and 5.
rule cost_tables:
    input:
        notebook="notebooks/12_cost.py",
        template=TEMPLATE,
        published=PUBLISHED,
        cost=every_variant(COST),
        gpu=GPU_ROWS,
        summaries=every_run(rules.train.output.summary),
        validation=every_run(rules.evaluate.output.validation),
        one_shot=every_run(rules.evaluate.output.one_shot),
        code=source("notebook", *REPORT),
    output:
        multiext("results/{scale}/tables/table4", ".csv", ".tex"),
        multiext("results/{scale}/tables/table5", ".csv", ".tex"),
        html="results/{scale}/notebooks/12_cost.html",
    log:
        "results/{scale}/logs/notebooks/12_cost.log",
    benchmark:
        "results/{scale}/benchmarks/notebooks/12_cost.tsv"
    resources:
        mem_mb=2000,
    params:
        values=notebook_parameters,
        titles=titles,
    message:
        "Tables 4 and 5 ({wildcards.scale})"
    shell:
        "ddl notebook {input.notebook} --html {output.html} --parameters {params.values:q} > {log} 2>&1"


# Every number that the paper's text and the README quote.
rule numbers:
    input:
        manifest=rules.data.output.manifest,
        tasks=task_files,
        summaries=every_run(rules.train.output.summary),
        provenance=every_run(rules.train.output.provenance),
        validation=every_run(rules.evaluate.output.validation),
        zero_shot=every_run(rules.evaluate.output.zero_shot),
        one_shot=every_run(rules.evaluate.output.one_shot),
        random_init=rules.evaluate_random_init.output,
        cost=every_variant(COST),
        code=source(*REPORT),
    output:
        numbers="results/{scale}/numbers.json",
    log:
        "results/{scale}/logs/numbers.log",
    benchmark:
        "results/{scale}/benchmarks/numbers.tsv"
    resources:
        mem_mb=2000,
    params:
        titles=titles,
    message:
        "numbers.json ({wildcards.scale})"
    shell:
        "ddl numbers --results results/{wildcards.scale} > {log} 2>&1"


rule paper:
    input:
        sources=["paper/main.typ", "paper/template.typ", "paper/refs.bib"],
        published=[*PUBLISHED, "paper/published/architecture.csv"],
        figures=expand("results/{{scale}}/figures/figure{number}.svg", number=FIGURES),
        tables=expand("results/{{scale}}/tables/table{number}.csv", number=TABLES),
        numbers=rules.numbers.output.numbers,
        code=source("paper"),
    output:
        pdf="results/{scale}/paper.pdf",
    log:
        "results/{scale}/logs/paper.log",
    benchmark:
        "results/{scale}/benchmarks/paper.tsv"
    resources:
        mem_mb=2000,
    message:
        "results/{wildcards.scale}/paper.pdf"
    shell:
        "ddl paper --results results/{wildcards.scale} --out {output.pdf} > {log} 2>&1"


rule sweep:
    input:
        f"results/{DEFAULT}/notebooks/{SWEEP}.html",


# Short names at the default scale: `snakemake --cores all figure2`.
for number in FIGURES:

    rule:
        name:
            f"figure{number}"
        input:
            multiext(
                f"results/{DEFAULT}/figures/figure{number}",
                ".pdf",
                ".svg",
                ".png",
            ),


for number in TABLES:

    rule:
        name:
            f"table{number}"
        input:
            multiext(f"results/{DEFAULT}/tables/table{number}", ".csv", ".tex"),
