# From a corpus to the paper: data -> 12 trainings -> evaluations and costs -> figures and tables -> paper.
# The scale is part of every path, so any file of any scale is a target: results/paper/figures/figure2.pdf.

import json
import os
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from ddl.config import ConfigError, load_scale, load_variants, scale_names, to_mapping

min_version("9.27")


configfile: "config/config.yaml"


# `python` in every rule is the one that runs Snakemake.
shell.prefix(f"export PATH={os.path.dirname(sys.executable)}:$PATH; ")

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


wildcard_constraints:
    scale="|".join(SCALES),
    size="small|medium",
    variant="|".join(VARIANTS),
    seed=r"\d+",


def source(*modules):
    """Package files that determine an output; a change in one of them reruns the rule."""
    return [f"ddl/{name}.py" for name in ("__init__", "config", "provenance", *modules)]


MODEL = ("model", "residual", "ops/__init__", "ops/rewrite", "ops/expand", "ops/compress")
NOTEBOOK = ["ddl/notebook.py"]


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
    return json.dumps({"model": model, "training": to_mapping(scale.training)}, sort_keys=True)


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


def task_files(wildcards):
    """Offline tasks are made from held-out documents; the benchmarks come from the hub."""
    offline = SCALES[wildcards.scale].evaluation.tasks == "offline"
    return [f"results/{wildcards.scale}/data/tasks/manifest.json"] if offline else []


def threads_of_run(wildcards):
    return SCALES[wildcards.scale].training.threads


rule all:
    default_target: True
    input:
        expand(
            "results/{scale}/{file}",
            scale=DEFAULT,
            file=[
                "paper.pdf",
                "notebooks/01_delta_rule.html",
                "notebooks/02_spectrum.html",
                "notebooks/03_architecture.html",
                "notebooks/10_loss_curves.html",
                "notebooks/11_downstream.html",
                "notebooks/12_cost.html",
            ],
        ),


# Documents, tokenizer and token shards; the manifest names every file with its SHA-256, and whoever reads them checks it.
rule data:
    input:
        code=source("corpus", "dedup", "tokenizer", "data"),
        packages="config/package_docs.json",
    output:
        manifest="results/{scale}/data/manifest.json",
        tokenizer="results/{scale}/data/tokenizer.json",
    log:
        "results/{scale}/logs/data.log",
    benchmark:
        "results/{scale}/benchmarks/data.tsv"
    params:
        settings=settings("corpus", "tokenizer"),
    threads: 2
    resources:
        mem_mb=8000,
    message:
        "data ({wildcards.scale}): corpus, tokenizer, shards"
    shell:
        "python -m ddl.data --scale {wildcards.scale} --out results/{wildcards.scale}/data 2>&1 | tee -i {log}"


# The eight offline tasks, from held-out documents.
rule tasks:
    input:
        manifest=rules.data.output.manifest,
        code=source("tasks", "tokenizer"),
    output:
        manifest="results/{scale}/data/tasks/manifest.json",
    log:
        "results/{scale}/logs/tasks.log",
    benchmark:
        "results/{scale}/benchmarks/tasks.tsv"
    params:
        settings=settings("evaluation", "sequence_length"),
    resources:
        mem_mb=4000,
    message:
        "tasks ({wildcards.scale}): eight offline tasks from held-out documents"
    shell:
        "python -m ddl.tasks --scale {wildcards.scale} --data results/{wildcards.scale}/data"
        " --out results/{wildcards.scale}/data/tasks 2>&1 | tee -i {log}"


# One of the twelve models. Checkpoints lie beside the outputs, under a fingerprint of settings, data and code.
rule train:
    input:
        manifest=rules.data.output.manifest,
        code=source("train", "data", *MODEL),
    output:
        config=f"{RUN}/config.json",
        weights=f"{RUN}/model.safetensors",
        metrics=f"{RUN}/metrics.jsonl",
        summary=f"{RUN}/summary.json",
        provenance=f"{RUN}/provenance.json",
    log:
        "results/{scale}/logs/train/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/train/{size}-{variant}-seed{seed}.tsv"
    params:
        settings=run_settings,
    threads: threads_of_run
    resources:
        gpu=1,
        mem_mb=4000,
    # The long jobs start first, so that no core waits at the end.
    priority: 10
    message:
        "train {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "python -m ddl.train --scale {wildcards.scale} --size {wildcards.size} --variant {wildcards.variant}"
        " --seed {wildcards.seed} --data results/{wildcards.scale}/data"
        " --out results/{wildcards.scale}/runs/{wildcards.size}/{wildcards.variant}/seed{wildcards.seed}"
        " 2>&1 | tee -i {log} | sed -u 's#^#[{wildcards.size}/{wildcards.variant}] #'"


# Loss on the whole validation split, and the eight tasks at 0 and 1 shot.
rule evaluate:
    input:
        manifest=rules.data.output.manifest,
        tasks=task_files,
        config=rules.train.output.config,
        weights=rules.train.output.weights,
        code=source("evaluate", "tasks", "tokenizer", "data", *MODEL),
    output:
        validation=f"{EVAL}/validation.json",
        zero_shot=f"{EVAL}/0shot.json",
        one_shot=f"{EVAL}/1shot.json",
    log:
        "results/{scale}/logs/evaluate/{size}-{variant}-seed{seed}.log",
    benchmark:
        "results/{scale}/benchmarks/evaluate/{size}-{variant}-seed{seed}.tsv"
    params:
        settings=settings("evaluation"),
    threads: threads_of_run
    resources:
        gpu=1,
        mem_mb=4000,
    message:
        "evaluate {wildcards.size}/{wildcards.variant}/seed{wildcards.seed} ({wildcards.scale})"
    shell:
        "python -m ddl.evaluate --scale {wildcards.scale} --data results/{wildcards.scale}/data"
        " --run results/{wildcards.scale}/runs/{wildcards.size}/{wildcards.variant}/seed{wildcards.seed}"
        " --out results/{wildcards.scale}/evals/{wildcards.size}/{wildcards.variant}/seed{wildcards.seed}"
        " > {log} 2>&1"


# A model that has learned nothing must score at chance: the tasks' own check.
rule evaluate_random_init:
    input:
        manifest=rules.data.output.manifest,
        tasks=task_files,
        code=source("evaluate", "tasks", "tokenizer", "data", *MODEL),
    output:
        zero_shot="results/{scale}/evals/random-init/0shot.json",
        one_shot="results/{scale}/evals/random-init/1shot.json",
    log:
        "results/{scale}/logs/evaluate/random-init.log",
    benchmark:
        "results/{scale}/benchmarks/evaluate/random-init.tsv"
    params:
        settings=settings("evaluation", "sizes"),
    threads: threads_of_run
    resources:
        gpu=1,
        mem_mb=4000,
    message:
        "evaluate a model with random weights ({wildcards.scale})"
    shell:
        "python -m ddl.evaluate --scale {wildcards.scale} --data results/{wildcards.scale}/data"
        " --random-init --size small --variant baseline --out results/{wildcards.scale}/evals/random-init"
        " > {log} 2>&1"


# Speed and memory of all variants of one size, interleaved; the job has the machine for itself.
rule cost:
    input:
        code=source("cost", "train", "data", *MODEL),
    output:
        expand(
            "results/{{scale}}/cost/{{size}}/{variant}.json",
            variant=VARIANTS,
        ),
    log:
        "results/{scale}/logs/cost/{size}.log",
    benchmark:
        "results/{scale}/benchmarks/cost/{size}.tsv"
    params:
        settings=settings("cost", "sizes", "sequence_length", "tokenizer"),
    threads: workflow.cores
    resources:
        gpu=1,
        mem_mb=8000,
    message:
        "cost {wildcards.size} ({wildcards.scale}): six variants, interleaved"
    shell:
        "python -m ddl.cost --scale {wildcards.scale} --size {wildcards.size}"
        " --out results/{wildcards.scale}/cost/{wildcards.size} 2>&1 | tee -i {log}"
