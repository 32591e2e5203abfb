"""Our and the published values of Table 3 (validation losses) and Tables 4 and 5 (costs)."""

import numpy as np
import pandas as pd

from ddl.config import paper_variants
from ddl.layout import BASELINE
from ddl.reporting.read_results import COST_NUMBERS, Measured, Record, Results, by_key, gpu_cost, of_designs, published
from ddl.reporting.seed_noise import noise_of, shown_accuracy, shown_difference, shown_loss, shown_perplexity
from ddl.reporting.table_format import DASH, cell, count, mark_best, significant

PUBLISHED_BLOCKS = {  # version of the paper -> heading of its rows in Tables 4 and 5
    "v3": "Published (paper scale, v3)",
    "revised": "Published (paper scale, only in the revised text)",
}


def loss_table(results: Results) -> pd.DataFrame:
    """Table 3: our and the published validation loss and perplexity at both sizes, and our paired differences.

    Our numbers are means over the seeds, with the half-width of the t-interval if there are several.
    """
    validation, paper = results.validation(), by_key(published("validation_loss"), "size", "variant")
    loss, perplexity = of_designs(validation, "val_loss"), of_designs(validation, "val_perplexity")
    noise = {size: noise_of(results.scale, size) for size in results.sizes}
    rows = []
    for slug, variant in results.variants.items():
        ours: dict[str, str] = {}
        theirs: dict[str, str] = {}
        missing: list[str] = []
        for size in results.sizes:
            key, name = (size, slug), f"Ours ({results.scale_phrase}): {size.capitalize()}"
            shown = {
                f"{name} valid loss": shown_loss(loss[key].estimate, noise[size]),
                f"{name} valid perplexity": shown_perplexity(perplexity[key].estimate, noise[size]),
            }
            ours |= {column: value.number for column, value in shown.items()}
            difference = f"{name} minus baseline"
            shown[difference] = shown_difference(loss[key].minus(loss[size, BASELINE]), noise[size])
            ours[difference] = shown[difference].signed if slug != BASELINE else ""
            if len(results.scale.seeds) > 1:
                ours |= {f"{column} ±": value.interval if ours[column] else "" for column, value in shown.items()}
            for value, title in (("val_loss", "valid loss"), ("val_perplexity", "valid perplexity")):
                theirs[f"Published: {size.capitalize()} {title}"] = cell(paper.get(key, {}).get(value), 4)
            missing += [loss[key].reason, "" if key in paper else "not in the paper"]
        reason = "; ".join(dict.fromkeys(filter(None, missing)))
        rows.append({"Model": variant.label, **ours, **theirs, "reason": reason})
    columns = [name for name in rows[0] if ": " in name and not name.endswith((" ±", " minus baseline"))]
    return mark_best(pd.DataFrame(rows), columns, lower=True, second=False)


def compute_table(results: Results) -> pd.DataFrame:
    """Training FLOPs and time per design, and the loss at the compute that the whole training of the baseline took.

    Losses are those of the validation sequences of the training, interpolated between two validations. Differences
    from the baseline's last loss are taken seed by seed.
    """
    curves = results.curves().dropna(subset=["val_loss"])
    rows = []
    for size in results.sizes:
        noise = noise_of(results.scale, size)
        runs = dict(iter(curves[curves["size"] == size].groupby(["variant", "seed"])))
        for slug, variant in results.variants.items():
            row = {"Size": size, "Model": variant.label}
            seeds = [seed for seed in results.scale.seeds if {(slug, seed), (BASELINE, seed)} <= runs.keys()]
            for progress, title in (("flops", "FLOPs"), ("seconds", "time")):
                shares, gaps = {}, {}
                for seed in seeds:
                    run, base = runs[slug, seed], runs[BASELINE, seed]
                    budget = base[progress].max()
                    shares[seed] = run[progress].max() / budget
                    reached = np.interp(budget, run[progress], run["val_loss"], right=np.nan)
                    gaps[seed] = float(reached) - base["val_loss"].iloc[-1]
                row[f"Training {title} / baseline"] = cell(_known(shares).mean, 2)
                difference = shown_difference(_known(gaps).estimate, noise).difference
                row[f"Loss minus baseline at its {title}"] = difference if slug != BASELINE else ""
            rows.append(row)
    return pd.DataFrame(rows)


def _known(by_seed: dict[int, float]) -> Measured:
    """The values that are numbers: a run may not have recorded its time, or end before the compute of the baseline."""
    return Measured({seed: value for seed, value in by_seed.items() if np.isfinite(value)}, "")


def cost_table(results: Results, size: str) -> pd.DataFrame:
    """Tables 4 and 5: parameters, quality, throughput and its ratio to the baseline, and peak memory.

    The blocks: measurements at this scale, measurements of the paper's shapes on a GPU (`gpu_cost`), and the published
    values by version of the paper. Published ratios are to the baseline of v3, which the revised text repeats.
    """
    cost = by_key(results.cost(), "size", "variant")
    loss, noise = of_designs(results.validation(), "val_loss"), noise_of(results.scale, size)
    one_shot = results.downstream(1)
    one_shot = one_shot[one_shot["column"] == "Avg."]
    average, stderr = of_designs(one_shot, "value"), of_designs(one_shot, "stderr")
    devices = [row["device"] for row in cost.values() if isinstance(row.get("device"), str)]
    block = f"Ours ({results.scale_phrase}, {devices[0] if devices else 'not measured'})"
    rows = []
    for slug, variant in results.variants.items():
        key = (size, slug)
        row = {"block": block, "Model": variant.label, "Params": count(cost[key]["params"])}
        quality = {
            "Val loss": shown_loss(loss[key].estimate, noise),
            "Avg eval": shown_accuracy(average[key].estimate, stderr[key].mean),
        }
        for name, value in quality.items():
            row |= {name: value.number, f"{name} ±": value.interval}
        row |= _measured_cost(cost[key], slug)
        texts = dict.fromkeys([cost[key]["reason"], loss[key].reason, average[key].reason])
        rows.append({**row, "reason": "; ".join(text for text in texts if text)})
    return pd.DataFrame(rows + _gpu_cost(results, size) + _published_cost(size)).fillna("")


def _gpu_cost(results: Results, size: str) -> list[Record]:
    """Rows measured on a GPU with freshly initialised weights; one row of dashes if there are none."""
    measured = gpu_cost(size)
    nothing: Record = dict.fromkeys(COST_NUMBERS, float("nan"))
    if not measured:
        models = {"All designs": (BASELINE, nothing | {"reason": "benchmarks/gpu.py has not been run on a GPU yet"})}
    else:
        nothing |= {"reason": "not in the kept GPU run"}
        models = {variant.label: (slug, measured.get(slug, nothing)) for slug, variant in results.variants.items()}
    device = measured[BASELINE]["device"] if measured else "GPU"
    rows = []
    for label, (slug, cost) in models.items():
        row = {"block": f"Ours (the paper's shapes, {device})", "Model": label, "Params": count(cost["params"], 4)}
        row |= {"Val loss": DASH, "Avg eval": DASH, **_measured_cost(cost, slug)}
        rows.append({**row, "reason": cost["reason"] or "speed was measured with freshly initialised weights"})
    return rows


def _measured_cost(cost: Record, slug: str) -> dict[str, str]:
    """The speed and memory columns of one row."""
    row = _speed("train", cost, slug) | _speed("inference", cost, slug)
    row["Peak memory (GB)"] = significant(cost["peak_mem_bytes"] / 1e9)
    row["Peak-memory factor"] = cell(cost["peak_mem_factor"], 2)
    return row


def _speed(kind: str, cost: Record, slug: str) -> dict[str, str]:
    """Throughput, its ratio to the baseline, and the spread of this ratio (empty for the baseline)."""
    low, high = (cell(cost[f"{kind}_ratio_{part}"], 2) for part in ("p20", "p80"))
    spread = "" if slug == BASELINE or DASH in (low, high) else f"{low}{DASH}{high}"
    return {
        f"{kind.capitalize()} tok/s (K)": significant(cost[f"{kind}_tok_per_s_median"] / 1e3, 4),
        f"{kind.capitalize()} ratio": cell(cost[f"{kind}_ratio_median"], 2),
        f"{kind.capitalize()} ratio range": spread,
    }


def _published_cost(size: str) -> list[dict[str, str]]:
    """The published rows: those of v3, with a row of dashes for each design without any, then the revised text's."""
    paper = by_key(published("cost"), "size", "variant")
    rows = []
    for slug, variant in paper_variants().items():
        theirs = paper.get((size, slug), dict.fromkeys(paper[size, BASELINE], None))
        block = PUBLISHED_BLOCKS[theirs["version"] or "v3"]
        row = {"block": block, "Model": variant.label, "Params": cell(theirs["params"])}
        row |= {"Val loss": cell(theirs["val_loss"], 4), "Avg eval": cell(theirs["avg_1shot_percent"], 2)}
        for kind in ("train", "inference"):
            speed, reference = theirs[f"{kind}_ktok_per_s"], paper[size, BASELINE][f"{kind}_ktok_per_s"]
            row[f"{kind.capitalize()} tok/s (K)"] = cell(speed, 1)
            row[f"{kind.capitalize()} ratio"] = cell(speed and speed / reference, 2)
        row["Peak memory (GB)"] = cell(theirs["peak_memory_gb"], 2)
        row["Peak-memory factor"] = cell(theirs["peak_memory_factor"], 2)
        known = (size, slug) in paper
        reason = "" if known else f"neither version of the paper's cost table for {size} models has this row"
        rows.append({**row, "reason": reason})
    return sorted(rows, key=lambda row: list(PUBLISHED_BLOCKS.values()).index(row["block"]))
