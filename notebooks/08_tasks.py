# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What do the tasks ask, and can their scores be trusted?
#
# The paper scores its models on eight multiple-choice benchmarks. Where they can be had, they are fetched at pinned
# revisions and run in full by the definitions of lm-evaluation-harness. At the offline scales a stand-in takes the
# place of each: a task made from held-out documents of the corpus, with as many choices as the benchmark of its
# column and nothing else in common with it. This page is the data card of the tasks of this scale. It says how they
# are made, shows an item of each, and looks for the three ways in which a score could mean less than it seems: a task
# that can be solved without the text, a task that an untrained model solves, and items that the training data
# contain.

# %% tags=["parameters"]
results = "results/laptop"

# %%
import json
from collections import Counter
from pathlib import Path

import pandas as pd

from ddl.config import SHOTS
from ddl.evaluation.contamination import NGRAMS
from ddl.evaluation.lm_eval_tasks import load_manifest, task_folder
from ddl.evaluation.offline_tasks.build import SIGMAS, TASKS, chance_stderr
from ddl.reporting.read_results import Results
from ddl.reporting.table_format import DASH, cell

data = Results(results)
folder = task_folder(data.scale, Path(results) / "data")
manifest = load_manifest(folder)
offline = data.scale.evaluation.tasks == "offline"
print(f"{data.scale.title} scale, {len(manifest['tasks'])} tasks in {folder}")

# %% [markdown]
# ## The card
#
# A stand-in item is one line of held-out prose: a docstring or a page of documentation that is in no training
# document. The model sees the lines above it and its beginning, and chooses how it goes on. What these tasks measure
# is whether the model knows what is plausible *locally* (which word, which order, which number), because that is what
# a model of a million parameters has learned after a million tokens; questions about content are at chance for it.

# %%
builders = {task.name: " ".join((task.build.__doc__ or "").split("\n\n")[0].split()) for task in TASKS}
card = pd.DataFrame(
    [
        {
            "stands for" if offline else "column": task["column"],
            "task": name,
            "items": task["n"],
            "demonstrations": task["train"]["n"],
            "chance, %": cell(100 * task["chance"], 1),
            "metric": task["metric"],
            "made of": builders[name]
            if offline
            else f"{task['dataset']} {task['configuration'] or ''} at {task['revision'][:10]}, split {task['split']}",
        }
        for name, task in manifest["tasks"].items()
    ]
)
card.style.hide(axis="index")


# %% [markdown]
# ## An item of each
#
# The right choice is marked with an arrow. In the last task the options stand in the text, and what is scored is the
# rest of the line.


# %%
def first_item(name: str) -> dict:
    """The first test item of a task, as its file has it."""
    path = folder / manifest["tasks"][name]["test"]["file"]
    if path.suffix == ".parquet":
        return {key: str(value) for key, value in pd.read_parquet(path).iloc[0].items()}
    return json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])


def show(item: dict) -> str:
    """An item as text: the query, then its choices."""
    if "choices" not in item or not isinstance(item["choices"], list):
        return "\n".join(f"{key}: {value}" for key, value in item.items() if key != "document")
    marks = ["->" if index == item["gold"] else "  " for index in range(len(item["choices"]))]
    return "\n".join([item["query"], *(f"  {mark} {text}" for mark, text in zip(marks, item["choices"], strict=True))])


for name, task in manifest["tasks"].items():
    print(f"{name} ({task['column']})\n{show(first_item(name))}\n")

# %% [markdown]
# ## What keeps the stand-ins honest
#
# - A line serves one task only, so that the columns of a table do not rise and fall together because they share text.
# - Lines that occur in a training document are dropped.
# - Demonstrations come from other documents than test items: no prompt shows an answer.
# - A document gives a task ten items at most; a few large generated modules would otherwise make up most of it.
# - The choices of an item are exchangeable for whoever ignores the text. How many distractors are more frequent than
#   the right word is drawn by a coin, because a window centred on it would make "the middle one" a winning guess;
#   endings have equal word counts; orders are the four elements of a swap group; prepositions and plural forms are
#   balanced.
# - The right choice stands at every position equally often.

# %%
if offline:
    lines = manifest["lines"]
    print(f"{lines['held_out']} held-out lines, {lines['in_training']} of them also in training and dropped")
    print(f"test items use {lines['test']['used']} of {lines['test']['lines']} lines, no line twice")
    for name in manifest["tasks"]:
        text = (folder / manifest["tasks"][name]["test"]["file"]).read_text(encoding="utf-8")
        items = [json.loads(line) for line in text.splitlines()]
        positions = Counter(item.get("gold", item.get("answer")) for item in items)
        assert max(positions.values()) - min(positions.values()) <= 1, name
        assert max(Counter(item["document"] for item in items).values()) <= 10, name
    print("right choices: every position equally often; documents: ten items of a task at most")
else:
    print("The benchmarks are used as they are, in full.")

# %% [markdown]
# ## Can they be solved without reading, or without learning?
#
# Three ways to answer that should come out at chance: the choice that is most frequent by the word counts of the
# training documents, always the shortest choice, and a model with its initial weights. A result within three standard
# errors of chance is what a fair task gives in 997 of 1,000 cases; a star marks the others.

# %%
scores = {shots: json.loads((data.path / f"evals/random-init/{shots}shot.json").read_text()) for shots in SHOTS}
rows, worst = [], 0.0
for name, task in manifest["tasks"].items():
    guesses = {check: found["value"] for check, found in task.get("checks", {}).items()}
    guesses |= {f"untrained, {shots}-shot": scores[shots]["tasks"][name]["value"] for shots in SHOTS}
    row = {"task": name, "chance, %": cell(100 * task["chance"], 1)}
    for check, value in guesses.items():
        errors = abs(value - task["chance"]) / chance_stderr(task["chance"], task["n"])
        row[f"{check}, %"] = cell(100 * value, 1) + (" *" if errors > SIGMAS else "")
        worst = max(worst, errors) if value == value else worst
    rows.append(row)
print(f"farthest from chance: {worst:.1f} standard errors")
pd.DataFrame(rows).style.hide(axis="index")

# %%
assert worst < 5, "a task that is solved without reading or learning: its column would mean nothing"

# %% [markdown]
# ## Are items in the training data?
#
# Held-out documents repeat phrases, and sometimes whole sentences, of training documents. For each item, with its
# right answer, we ask whether any stretch of its tokens occurs in the training shards. Eight tokens are often a turn
# of phrase; thirteen are rarely shared by accident. A share of items with a *whole* match would be a real leak.

# %%
path = data.path / "contamination.json"
touched = json.loads(path.read_text(encoding="utf-8"))["tasks"]
pd.DataFrame(
    [
        {"task": name}
        | {
            f"{n} tokens: {what}, %": cell(100 * found[str(n)][key], 1) if key in found[str(n)] else DASH
            for n in NGRAMS
            for what, key in (("some", "any"), ("all", "all"))
        }
        for name, found in touched.items()
    ]
).style.hide(axis="index")

# %% [markdown]
# ## What was and was not shown
#
# The checks bound what a score may owe to frequency, length, position and chance, and the search bounds what it may
# owe to copies of the items. They do not show that a task measures what its name says, nor that an item is new to a
# model in other words. `11_downstream` has the scores, and those on the items without a match.
