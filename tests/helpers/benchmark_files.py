"""Small files in the schemas of the paper's eight benchmarks."""

import dataclasses
import random

import datasets
import pandas as pd

from ddl.evaluation.paper_benchmarks import BENCHMARKS

ITEMS, DEMOS = 10, 6
WORDS = "the cat dog bird sat ran on under a mat tree river because it was small red old and quiet".split()  # noqa: SIM905


def phrase(rng, n=4):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def arc(rng, index):
    text = [phrase(rng) for _ in range(4)]
    labels = list("1234" if index % 5 == 0 else "ABCD")  # some of the real questions number their choices
    return {
        "id": f"q{index}",
        "question": f"{phrase(rng)}?",
        "choices": {"text": text, "label": labels},
        "answerKey": rng.choice(labels),
    }


def hellaswag(rng, index):
    return {
        "activity_label": "Sitting on mats",
        "ctx_a": f"{phrase(rng)} [title] x.",
        "ctx_b": phrase(rng),
        "endings": [phrase(rng, 6) for _ in range(4)],
        "label": str(rng.randrange(4)),
    }


def openbookqa(rng, index):
    return {"question_stem": phrase(rng), **{key: arc(rng, 1)[key] for key in ("choices", "answerKey")}}


def piqa(rng, index):
    return {"goal": phrase(rng), "sol1": phrase(rng), "sol2": phrase(rng), "label": rng.randrange(2)}


def sciq(rng, index):
    answers = {name: phrase(rng, 2) for name in ("distractor1", "distractor2", "distractor3", "correct_answer")}
    return {"question": f"{phrase(rng)}?", "support": f" {phrase(rng)}.", **answers}


def siqa(rng, index):
    answers = {f"answer{letter}": phrase(rng) for letter in "ABC"}
    return {"context": phrase(rng), "question": f"{phrase(rng)}?", **answers, "label": rng.choice("123")}


def winogrande(rng, index):
    options = {"option1": "cat", "option2": "dog"}
    return {"sentence": f"{phrase(rng)} _ {phrase(rng)}.", **options, "answer": rng.choice("12")}


SCHEMAS = {
    "arc_challenge": arc,
    "arc_easy": arc,
    "hellaswag": hellaswag,
    "openbookqa": openbookqa,
    "piqa": piqa,
    "sciq": sciq,
    "social_iqa": siqa,
    "winogrande": winogrande,
}


def local_copies(folder):
    """Write each dataset as a folder of Parquet files; return benchmarks that point to these folders."""
    found = []
    for benchmark in BENCHMARKS:
        rng = random.Random(benchmark.task)
        source = folder / benchmark.task
        source.mkdir(parents=True)
        for split, count in ((benchmark.split, ITEMS), ("train", DEMOS)):
            rows = [SCHEMAS[benchmark.task](rng, index) for index in range(count)]
            datasets.Dataset.from_list(rows).to_parquet(source / f"{split}.parquet")
        found.append(dataclasses.replace(benchmark, dataset=str(source), configuration=None, items=ITEMS))
    return tuple(found)


def rows(folder, task, split="test"):
    return pd.read_parquet(folder / f"{task}.{split}.parquet").to_dict("records")
