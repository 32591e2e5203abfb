"""The generated parts of README.md and docs/*.md that the committed rows of the studies decide."""

import csv

from ddl.config import SIZES, load_backbones, load_scale, load_variants
from ddl.layout import BASELINE, ROOT
from ddl.reporting.evidence import findings
from ddl.reporting.expectations import outcomes
from ddl.reporting.judged_claims import CONTROLS, FAIR, SCALE, committed_verdicts, of_runs
from ddl.reporting.keep_reference import REFERENCE
from ddl.reporting.read_studies import DESIGN, rows_if_any
from ddl.reporting.rivals import compared
from ddl.reporting.seed_statistics import Losses, best_rate, over_seeds, paired_difference
from ddl.reporting.table_format import DASH, count

RATES = "learning-rate"  # the study of learning rates
REPORTED = ROOT / "paper/published/residual_designs.csv"  # what the papers of other designs say
STUDIES = (REFERENCE / "studies").relative_to(ROOT)
READINGS = {  # a design -> the same design with our value
    "baseline": "baseline",
    "ddl-dv1": "ddl-dv1",
    "ddl-dv1-no-value-bias": "ddl-dv1",
    "ddl-cc": "ddl-cc",
    "ddl-cc-no-value-bias": "ddl-cc",
    "ddl-cc-public-value": "ddl-cc",
}


def study_parts() -> dict[str, str]:
    """Name of a part -> its text."""
    return {
        "finding": finding_part(),
        "verdicts": verdicts_part(),
        "bias": bias_part(),
        "rate": rate_part(),
        "reported": reported_part(),
        "expected": expected_part(),
    }


def finding_part() -> str:
    """What carries the gain: the answer, and a list of what it rests on."""
    first, *rest = findings().values()
    rows = f"[`{STUDIES}`]({STUDIES})"
    note = f"± is the half-width of a 95 % interval over n seeds; rows in {rows}, figures in notebook 13."
    return "\n".join([f"**{first}**", "", *(f"- {text}" for text in rest), "", note])


def verdicts_part() -> str:
    """The claims about losses with the verdicts for both sizes on the repaired backbone, then those about the rest."""
    _, judged = committed_verdicts(load_scale(SCALE))
    lines = [
        "| claim | *paper: small* | here: small | verdict | *paper: medium* | here: medium | verdict |",
        "|---|--:|--:|---|--:|--:|---|",
    ]
    for claim in dict.fromkeys(row.claim for row in judged if row.backbone == FAIR):
        cells = [claim]
        for row in (row for row in judged if row.claim == claim and row.backbone == FAIR):
            published = DASH if row.published is None else f"*{row.published:+.4f}*"
            cells += [published, row.shown + (f" (n = {row.seeds})" if row.seeds else ""), row.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    elsewhere = [f"{row.claim}: {row.verdict}, because {row.why}." for row in judged if not row.backbone]
    return "\n".join(
        [
            *lines,
            "",
            f"Gains in nats after {count(load_scale(SCALE).tokens)} tokens, positive if the claim's design is better, "
            "with the repaired embedding; for the rule as cause, the smallest gain over its rivals without the rule. "
            + " ".join(elsewhere)
            + " `verdict.json` has all rows and reasons, also on the paper's recipe.",
        ]
    )


def bias_part() -> str:
    """The losses of the readings of the value branch."""
    losses = of_runs(rows_if_any(CONTROLS), "small", FAIR)
    if not any(slug != ours and slug in losses for slug, ours in READINGS.items()):
        return "The runs of the other readings have not been done."
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    lines = [
        "| small models, laptop scale | seeds | validation loss | minus the same design with our value | minus the "
        "baseline |",
        "|---|--:|--:|--:|--:|",
    ]
    for slug, ours in ((slug, ours) for slug, ours in READINGS.items() if slug in losses):
        cells = [
            labels[slug],
            str(len(losses[slug])),
            over_seeds(list(losses[slug].values())).shown(),
            "" if slug == ours else shown_difference(losses[slug], losses[ours]),
            "" if slug == BASELINE else shown_difference(losses[slug], losses[BASELINE]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    place = f"[`{STUDIES}`](../{STUDIES})"
    return "\n".join(
        [
            *lines,
            "",
            "Loss in nats on the whole validation split. A difference is the mean over the seeds that both designs "
            "have, ± the half-width of its 95 % t-interval. A seed gives all designs the same data in the same order. "
            f"Rows of the study `{CONTROLS}` in {place}.",
        ]
    )


def shown_difference(losses: Losses, others: Losses) -> str:
    """Mean difference over the common seeds ± the half-width of its interval; a dash if there is one seed."""
    if len(losses.keys() & others.keys()) < 2:
        return DASH
    return paired_difference(losses, others).shown("+")


def rate_part() -> str:
    """The table of validation losses by learning rate, from the study of learning rates."""
    rows = rows_if_any(RATES)
    if rows.empty:
        return "The runs of this study have not been done."
    labels, backbones = load_variants(), load_backbones()
    rates, shared = sorted(rows["learning_rate"].unique()), load_scale(SCALE).training.learning_rate
    tokens = " or ".join(f"{tokens:,}" for tokens in sorted(rows["tokens"].unique()))
    lines = [
        f"| backbone | design | seeds | {' | '.join(f'{rate:g}' for rate in rates)} | lost at {shared:g} |",
        f"|---|---|--:|{'--:|' * (len(rates) + 1)}",
    ]
    for backbone, variant in rows[DESIGN].drop_duplicates().itertuples(index=False):
        group = rows[(rows["backbone"] == backbone) & (rows["variant"] == variant)]
        found = group.groupby("learning_rate")["val_loss"].mean().dropna()
        means = dict(zip(map(float, found.index), map(float, found), strict=True))
        best = best_rate(means)
        cells = [f"{means[rate]:.2f}" if rate in means else DASH for rate in rates]
        cells[rates.index(best.tried)] = f"**{means[best.tried]:.2f}**"
        lost = f"{means[shared] - best.loss:.2f}" if shared in means else DASH
        seeds = str(group["seed"].nunique())
        lines.append(f"| {' | '.join([backbones[backbone].label, labels[variant].label, seeds, *cells, lost])} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Validation loss in nats of small models after {tokens} tokens, mean over seeds, by peak learning rate; "
            f"the lowest of each row is bold. Rows of the study `{RATES}` in [`{STUDIES}`](../{STUDIES}).",
        ]
    )


def reported_part() -> str:
    """What other papers report for their designs, beside the difference to the baseline that was measured here."""
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    found = {size: {each.slug: each.over_baseline for each in compared(size)} for size in SIZES}
    lines = [
        "| design | reported by its authors | by others | measured here: small | medium |",
        "|---|---|---|---|---|",
    ]
    with open(REPORTED, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            slugs, cells = row["variants"].split(), []
            for differences in found.values():
                shown = {slug: gap.shown("+") for slug in slugs if (gap := differences.get(slug))}
                several = [f"{labels[slug]} {text}" for slug, text in shown.items()]
                cells.append("<br>".join(several if len(slugs) > 1 else shown.values()) or DASH)
            name = f"[{row['design']}]({row['url']})" if row["url"] else row["design"]
            lines.append(f"| {name} | {row['reported']} | {row['independent'] or DASH} | {' | '.join(cells)} |")
    return "\n".join(lines)


def expected_part() -> str:
    """What came of each expectation about the residual designs of other papers."""
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    found = [(size, outcome) for size in SIZES for outcome in outcomes(size)]
    if not found:
        return "The runs have not been done."
    lines = ["| expected | size | difference, in nats | n | |", "|---|---|---|--:|---|"]
    for size, each in found:
        pair = f"{labels[each.design]} minus {labels[each.expectation.reference]}"
        gap = each.difference
        lines.append(f"| {each.expectation.text} | {size} | {pair}: {gap.shown('+')} | {gap.n} | {each.verdict} |")
    return "\n".join(lines)
