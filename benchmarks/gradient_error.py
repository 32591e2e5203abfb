"""Measure what rebuilding states costs in accuracy, during training: `python -m benchmarks.gradient_error --data ...`.

A model of the paper's depth and width is trained on text with the paper's recipe, shortened, in bf16 and with stored
bf16 states. At several steps of this training, the gradient of the loss on held-out text is computed with stored and
with rebuilt states, in three precisions: fp32, bf16 autocast with the state in fp32, and bf16 autocast with the state
in bf16. The reference is the gradient by plain autograd in fp64. Two files get rows:

    gradient_error.csv   per group of parameters (`groups`): the errors |g - g64| / |g64| with stored and with rebuilt
                         states, their difference |rebuilt - stored| / |g64|, the cosine of the angle between the two,
                         and `other_text`, the distance of the gradient of other held-out text, |g' - g64| / |g64|;
                         and the tensor, of at least d numbers, whose error grows most
    rebuilt_states.csv   per state: the error of the rebuilt one relative to the state of the same forward pass, and
                         how much longer the last state is than this one

The rule by which `state_dtype: bfloat16` with `state_memory: rebuilt` is accepted was written before the measurement:
at every step of every model and in every group, the error with rebuilt states is at most `MOST` times that with stored
states. A difference that is independent of the error must be 0.46 times as large to raise it that much.

An interrupted run continues from its checkpoint.
"""

import argparse
import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Rows, origin
from ddl.config import ModelConfig, TrainConfig, from_mapping, load_scale, load_variants
from ddl.data.sequences import TokenSequences
from ddl.files import atomic
from ddl.layout import ROOT
from ddl.model.language_model import LanguageModel
from ddl.training.batches import TrainingBatches
from ddl.training.distributed import Processes
from ddl.training.learner import Learner, learning_rate

MOST = 1.1  # times the error with stored states
ARITHMETIC = {  # name -> bf16 autocast, dtype of the state
    "fp32": (False, "parameters"),
    "bf16, state in fp32": (True, "parameters"),
    "bf16, state in bf16": (True, "bfloat16"),
}
LENGTH = 256  # tokens per sequence
BATCH = 4  # sequences per training step
HELD_OUT = 2  # sequences per gradient
EVERY = 25  # steps between checkpoints
KINDS = {  # part of a parameter's name -> kind; the first that fits
    "embedding": "embedding",
    "expand": "embedding convolution",
    "gate.": "gates",
    "value.": "values",
    "norm": "norms",
    "compress": "compressors",
    "attention": "attention matrices",
    "mlp": "MLP matrices",
}
SUBJECT = ("variant", "layers", "width", "step", "train_loss", "arithmetic")
GRADIENT_COLUMNS = (
    *SUBJECT,
    *("group", "stored", "rebuilt", "difference", "cosine", "other_text"),
    *("worst_tensor", "worst_stored", "worst_rebuilt"),
)
STATE_COLUMNS = (*SUBJECT, "state", "error", "worst_token", "growth")
Gradient = dict[str, Tensor]


def groups(names: list[str], layers: int) -> dict[str, list[str]]:
    """Groups of parameter names: all; each kind of `KINDS`, over all layers; and each layer, over all kinds."""
    found = {"all": names}
    for kind in dict.fromkeys(KINDS.values()):
        found[kind] = [name for name in names if kind_of(name) == kind]
    for layer in range(layers):
        found[f"layer {layer + 1}"] = [name for name in names if name.startswith(f"blocks.{layer}.")]
    return {group: members for group, members in found.items() if members}


def kind_of(name: str) -> str:
    return next(kind for part, kind in KINDS.items() if part in name)


def sums(exact: Gradient, stored: Gradient, rebuilt: Gradient, other: Gradient) -> dict[str, dict[str, float]]:
    """Parameter name -> the sums of squares and products from which the columns of any group follow."""
    found = {}
    for name, truth in exact.items():
        a, b, c = (part[name].double() for part in (stored, rebuilt, other))
        pairs = {"stored": a - truth, "rebuilt": b - truth, "difference": b - a, "other_text": c - truth}
        found[name] = {column: float(vector.square().sum()) for column, vector in pairs.items()}
        products = {"exact": (truth, truth), "aa": (a, a), "bb": (b, b), "ab": (a, b)}
        found[name] |= {key: float(torch.dot(x.flatten(), y.flatten())) for key, (x, y) in products.items()}
    return found


def columns(each: dict[str, dict[str, float]], names: list[str], large: set[str]) -> dict[str, Any]:
    """The columns of gradient_error.csv for one group of parameters; `large` tensors can be the worst one."""
    total = {key: sum(each[name][key] for name in names) for key in each[names[0]]}
    row: dict[str, Any] = {
        column: (total[column] / total["exact"]) ** 0.5 for column in ("stored", "rebuilt", "difference", "other_text")
    }
    row["cosine"] = total["ab"] / (total["aa"] * total["bb"]) ** 0.5
    if candidates := large.intersection(names):
        worst = max(sorted(candidates), key=lambda name: each[name]["rebuilt"] / each[name]["stored"])
        row["worst_tensor"] = worst
        row |= {f"worst_{way}": (each[worst][way] / each[worst]["exact"]) ** 0.5 for way in ("stored", "rebuilt")}
    return row


def gradient(
    config: ModelConfig,
    weights: Gradient,
    text: tuple[Tensor, Tensor],
    autocast: bool = False,
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[LanguageModel], Any] = lambda model: None,
) -> Gradient:
    """Parameter name -> gradient of the loss; `prepare` gets the model before it runs."""
    model = LanguageModel(config).to(dtype)
    model.load_state_dict(weights)
    prepare(model)
    for ids, targets in zip(*text, strict=True):  # one by one: plain autograd in fp64 takes much memory
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.loss(ids[None], targets[None]) / len(text[0])
        loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


class Watch:
    """Compares each state that the backward pass rebuilds with the one that the forward pass overwrote.

    Attributes:
        wrong: per state, from the first, the sum of squares of the difference.
        worst: per state, the largest relative error of a token.
        size: per state, its sum of squares; one more entry for the last state.
    """

    def __init__(self) -> None:
        self.wrong: list[float] = []
        self.worst: list[float] = []
        self.size: list[float] = []

    def attach(self, model: LanguageModel) -> None:
        rules = model.rules()
        self.wrong, self.worst, self.size = [0.0] * len(rules), [0.0] * len(rules), [0.0] * (len(rules) + 1)
        for index, rule in enumerate(rules):
            self.wrap(rule, index)

    def wrap(self, rule: Any, index: int) -> None:
        rewrite_and_read = rule.rewrite_and_read

        def watched(X: Tensor, x_in: Tensor | None, c: Tensor, h: Tensor, *arguments: Any) -> tuple[Any, ...]:
            before, held = X.detach().clone(), X.detach()  # `held` is the memory that is overwritten

            def rebuilt(_: Tensor) -> None:  # the gradient in h exists, so this rewrite has been undone
                wrong, size = per_token(held.double() - before.double()), per_token(before)
                self.wrong[index] += float(wrong.sum())
                self.worst[index] = max(self.worst[index], float((wrong / size).max()) ** 0.5)

            h.register_hook(rebuilt)
            self.size[index] += float(per_token(before).sum())
            X_next, *inputs = rewrite_and_read(X, x_in, c, h, *arguments)
            if index == len(self.wrong) - 1:
                self.size[-1] += float(per_token(X_next.detach()).sum())
            return X_next, *inputs

        rule.rewrite_and_read = watched

    def rows(self) -> list[dict[str, Any]]:
        """The columns of rebuilt_states.csv for each state."""
        return [
            {"state": index, "error": (wrong / size) ** 0.5, "worst_token": worst}
            | {"growth": (self.size[-1] / size) ** 0.5}
            for index, (wrong, worst, size) in enumerate(zip(self.wrong, self.worst, self.size, strict=False))
        ]


def per_token(X: Tensor) -> Tensor:
    """The sum of squares of each token's state, (B, T) in fp64."""
    return X.double().square().flatten(2).sum(-1)


def measure(
    config: ModelConfig,
    weights: Gradient,
    texts: list[tuple[Tensor, Tensor]],
    subject: dict[str, Any],
    gradient_rows: Rows,
    state_rows: Rows,
) -> None:
    """Add the rows of one model; the errors are those of the first text."""
    reference = dataclasses.replace(config, kernels="reference", state_dtype="parameters", state_memory="stored")
    exact = gradient(reference, weights, texts[0], dtype=torch.float64)
    other = gradient(dataclasses.replace(reference, kernels="auto"), weights, texts[1])
    large = {name for name, tensor in exact.items() if tensor.numel() >= config.width}
    of_gradient: list[dict[str, Any]] = []
    of_states: list[dict[str, Any]] = []
    for name, (autocast, state_dtype) in ARITHMETIC.items():
        mode = dataclasses.replace(config, state_dtype=state_dtype, state_memory="stored")  # type: ignore[arg-type]
        stored = gradient(mode, weights, texts[0], autocast)
        watch = Watch()
        mode = dataclasses.replace(mode, state_memory="rebuilt")
        rebuilt = gradient(mode, weights, texts[0], autocast, prepare=watch.attach)
        each = sums(exact, stored, rebuilt, other)
        of_gradient += [
            {"arithmetic": name, "group": group} | columns(each, members, large)
            for group, members in groups(list(exact), config.layers).items()
        ]
        of_states += [{"arithmetic": name} | row for row in watch.rows()]
    for rows, found in ((gradient_rows, of_gradient), (state_rows, of_states)):
        for row in found:
            rows.add(**subject, **row)
    for name in ARITHMETIC:
        every = [row for row in of_gradient if row["arithmetic"] == name]
        worst = max(every, key=lambda row: row["rebuilt"] / row["stored"])
        ratio = worst["rebuilt"] / worst["stored"]
        verdict = "accepted" if ratio <= MOST else "not accepted"
        print(
            f"  {name}: stored {every[0]['stored']:.2e}, rebuilt {every[0]['rebuilt']:.2e}; largest ratio {ratio:.3f} "
            f"({worst['group']}): {verdict}",
            flush=True,
        )


def advance(
    state: dict[str, Any], stop: int, config: ModelConfig, training: TrainConfig, data: TokenSequences
) -> dict[str, Any]:
    """Train from `state` to the step `stop`; return that state, with the mean loss of the last ten steps at most."""
    learner = Learner(LanguageModel(config), training, Processes())
    if state["step"]:
        learner.load(state)
    losses: list[float] = []
    steps = range(state["step"], stop)
    for step, batch in zip(steps, TrainingBatches(data, training, 0, Processes()).stream(steps), strict=True):
        loss, _ = learner.step(batch, learning_rate(step, training))
        losses.append(float(loss))
        print(f"  step {step + 1}: loss {losses[-1]:.3f}", flush=True)
    return learner.state() | {"step": stop, "loss": sum(losses[-10:]) / len(losses[-10:])}


def has(rows: Rows, subject: dict[str, str]) -> bool:
    """Whether the file already has rows of this subject."""
    with open(rows.path, newline="", encoding="utf-8") as file:
        return any(subject.items() <= row.items() for row in csv.DictReader(file))


def recipe(steps: int, rate: float) -> TrainConfig:
    """The recipe of the paper with few steps and small batches, on one thread."""
    paper = load_scale("paper").training
    return dataclasses.replace(
        paper,
        steps=steps,
        warmup_steps=steps // 5,
        learning_rate=rate,
        min_learning_rate=rate * paper.min_learning_rate / paper.learning_rate,
        batch_sequences=BATCH,
        micro_batch_sequences=BATCH,
        threads=1,
        gpus=0,
        compile=False,
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Accuracy of stored and rebuilt states during training.")
    parser.add_argument("--data", type=Path, required=True, help="manifest of the tokens, as `ddl data` writes it")
    parser.add_argument("--variant", default="ddl-cc", choices=[slug for slug in load_variants() if slug != "baseline"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="training steps (100)")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate (1e-3, the paper's)")
    parser.add_argument("--measured", type=int, nargs="+", help="steps at which to measure (0, a quarter, the last)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reference" / "kernels")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to continue from; it is several GB")
    args = parser.parse_args(argv)
    training = recipe(args.steps, args.rate)
    torch.set_num_threads(training.threads)
    shape = {"sequence_length": LENGTH, "layers": args.layers, "width": args.width, "heads": args.heads}
    data, held_out = (TokenSequences(args.data, split, LENGTH) for split in ("train", "val"))
    settings = shape | {"vocab_size": data.vocab_size} | load_variants()[args.variant].model
    config = from_mapping(ModelConfig, settings, "gradient_error")
    texts = [held_out.batch(range(first, first + HELD_OUT)) for first in (0, len(held_out) // 2)]
    source = origin(torch.device("cpu"), None)
    gradient_rows = Rows(args.out / "gradient_error.csv", GRADIENT_COLUMNS, source)
    state_rows = Rows(args.out / "rebuilt_states.csv", STATE_COLUMNS, source)
    name = {"variant": args.variant, "layers": args.layers, "width": args.width}
    model = LanguageModel(dataclasses.replace(config, state_dtype="bfloat16"))
    state: dict[str, Any] = {"step": 0, "loss": "", "model": model.state_dict()}
    del model
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, mmap=True)
        print(f"continuing after step {state['step']}", flush=True)
    measured = set(args.measured or (0, args.steps // 4, args.steps))
    for step in sorted(measured | set(range(0, args.steps, EVERY))):
        if step < state["step"]:
            continue
        if step > state["step"]:
            state = advance(state, step, dataclasses.replace(config, state_dtype="bfloat16"), training, data)
            with atomic(args.checkpoint) as temporary:
                torch.save(state, temporary)
            del state["optimizer"]  # the measurement needs the memory
        subject = {key: str(value) for key, value in (name | {"step": step}).items()}
        if step in measured and not has(gradient_rows, subject):
            print(f"{args.variant}, {args.layers} x {args.width}, step {step}:", flush=True)
            measure(config, state["model"], texts, subject | {"train_loss": state["loss"]}, gradient_rows, state_rows)
        if step:
            state = torch.load(args.checkpoint, mmap=True)


if __name__ == "__main__":
    main()
