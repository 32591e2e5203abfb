"""The statements of the paper that were checked, and what came out: paper/claims.csv."""

import csv
from collections.abc import Sequence

from ddl.layout import ROOT

CLAIMS = ROOT / "paper" / "claims.csv"
Claim = dict[str, str]  # Label, Paper, Version, Claim, Notebook, Verified by, Outcome


def read_claims(notebook: str = "") -> list[Claim]:
    """All claims in the order of the paper, or those that a notebook checks.

    Args:
        notebook: two digits.
    """
    with open(CLAIMS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if not notebook or notebook in notebooks_of(row)]


def notebooks_of(claim: Claim) -> list[str]:
    """The two digits of each notebook that checks a claim."""
    return [number for number in claim["Notebook"].split(", ") if number.isdigit()]


def anchor(claim: Claim) -> str:
    """The place of a claim on the page of a notebook that checks it."""
    return f"claim-{claim['Label']}"


def claims_table(claims: Sequence[Claim], columns: Sequence[str]) -> str:
    """A Markdown table; besides those of the file there may be a column `Check` in the rows."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(claim[name] for name in columns)} |" for claim in claims)])
