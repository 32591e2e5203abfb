"""The table of claims and the notebooks agree: every row has a check that carries its label, and every label a row."""

import pytest

from ddl.layout import ROOT
from ddl.reporting.claims import read_claims
from tests.helpers.claims import COLUMNS, disagreements, labels_of_checks

NOTEBOOKS = {path.name[:2]: path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("*.py"))}


def test_the_table_has_the_expected_columns():
    assert all(list(claim) == COLUMNS for claim in read_claims())


def test_every_claim_has_a_check_in_each_notebook_it_names_and_every_label_a_row():
    assert disagreements(read_claims(), NOTEBOOKS) == []


def row(label="closed-gate", notebook="01", version="v3", outcome="Holds"):
    return dict(zip(COLUMNS, (label, "Sec. 2.1", version, "A claim", notebook, "exact", outcome), strict=True))


CHECKED = 'x = 1\nassert x == 1, "closed-gate"\n'


def test_a_table_and_notebooks_that_agree_have_no_disagreement():
    rows = [row(notebook="01, 02"), row("speed-of-light", "–", "revised", "Not tested here: it needs a laboratory")]
    assert disagreements(rows, {"01": CHECKED, "02": CHECKED, "03": "y = 2"}) == []


@pytest.mark.parametrize(
    ("rows", "sources", "expected"),
    [
        ([row()], {"01": "x = 1"}, ["closed-gate: no check in notebook 01"]),
        ([row(notebook="01, 02")], {"01": CHECKED, "02": ""}, ["closed-gate: no check in notebook 02"]),
        ([row(notebook="01, 99")], {"01": CHECKED}, ["closed-gate: no check in notebook 99"]),
        ([], {"01": CHECKED}, ["closed-gate: no row that names notebook 01"]),
        ([row()], {"01": CHECKED, "02": CHECKED}, ["closed-gate: no row that names notebook 02"]),
        ([row(), row()], {"01": CHECKED}, ["closed-gate: 2 rows"]),
        ([row(version="v4")], {"01": CHECKED}, ["closed-gate: version 'v4', expected one of v3, revised, both, ours"]),
        (
            [row(notebook="–")],
            {"01": ""},
            ["closed-gate: a row without a notebook says 'Not tested here' and why, and no other row does"],
        ),
        (
            [row(outcome="Not tested here: no time")],
            {"01": CHECKED},
            ["closed-gate: a row without a notebook says 'Not tested here' and why, and no other row does"],
        ),
        (
            [row("Closed gate")],
            {"01": 'x = 1\nassert x == 1, "Closed gate"'},
            ["'Closed gate': expected lower-case words joined by hyphens", "Closed gate: no check in notebook 01"],
        ),
    ],
)
def test_each_kind_of_disagreement_is_named(rows, sources, expected):
    assert disagreements(rows, sources) == expected


@pytest.mark.parametrize("number", sorted(NOTEBOOKS))
def test_without_the_labels_of_a_notebook_its_rows_have_no_check(number):
    rows = [found for found in read_claims() if number in found["Notebook"]]
    emptied = NOTEBOOKS | {number: "x = 1"}
    missing = [f"{found['Label']}: no check in notebook {number}" for found in rows]
    assert disagreements(read_claims(), emptied) == missing


@pytest.mark.parametrize(
    "source",
    [
        'assert value == 1, "closed-gate"',
        'assert value == 1, "closed-gate: the details"',
        'assert value == 1, f"closed-gate: {value}"',
        'for n in range(value):\n    if n:\n        assert n < 3, "closed-gate"',
        'def check(n):\n    assert n, "closed-gate"\n\n\ndef outer():\n    check(value)\n\n\nouter()',
        'class Stack:\n    def run(self):\n        assert self.x, "closed-gate"\n\n\nStack().run()',
        'run(lambda: check())\n\n\ndef check():\n    assert value, "closed-gate"',
    ],
)
def test_an_assert_that_runs_and_can_fail_is_a_check(source):
    assert labels_of_checks(f"value = compute()\n{source}") == ["closed-gate"]


@pytest.mark.parametrize(
    "source",
    [
        'assert True, "closed-gate"',
        'assert 1 < 2, "closed-gate"',
        'assert "closed-gate"',
        'assert not False, "closed-gate"',
        'assert value == value, "closed-gate"',
        'assert value == 1 or True, "closed-gate"',
        'assert (value == 1, "closed-gate")',
        'assert [value], "closed-gate"',
        'assert len("abc") == 3, "closed-gate"',
        '# assert value == 1, "closed-gate"',
        'text = "assert value == 1, closed-gate"',
        'assert value == 1, "not a closed-gate"',
        'assert value == 1, "closed-gates"',
        'assert value == 1, f"{value} closed-gate"',
        'if False:\n    assert value == 1, "closed-gate"',
        'while 0:\n    assert value == 1, "closed-gate"',
        'for n in ():\n    assert value == 1, "closed-gate"',
        'try:\n    assert value == 1, "closed-gate"\nexcept AssertionError:\n    pass',
        'def check():\n    assert value == 1, "closed-gate"',
        'def check():\n    assert value == 1, "closed-gate"\n    check()',
        'def check():\n    return\n    assert value == 1, "closed-gate"\n\n\ncheck()',
    ],
)
def test_an_assert_that_cannot_fail_or_does_not_run_is_none(source):
    assert "closed-gate" not in labels_of_checks(f"value = compute()\n{source}")
