"""The generated parts of README.md and docs/: their marks, and that they match the committed files."""

import json
import re

import pytest

from ddl.layout import ROOT
from ddl.reporting import readme as readme_module
from ddl.reporting.keep_reference import REFERENCE, KeepError
from ddl.reporting.readme import (
    current_numbers,
    fill,
    headline_part,
    mutations_part,
    read_pages,
    readme_parts,
)
from ddl.reporting.readme_studies import shown_difference
from tests.helpers.command import ddl

PAGES = read_pages()
SHOWN = re.search(r"results/reference/([\w-]+)/figures", PAGES["README.md"])[1]
PARTS = re.findall(r"<!-- begin (\S+) -->", "".join(PAGES.values()))


@pytest.fixture(scope="module")
def parts():
    return readme_parts(REFERENCE / SHOWN)


@pytest.fixture
def numbers():
    return json.loads((REFERENCE / SHOWN / "numbers.json").read_text()) | current_numbers(REFERENCE / SHOWN)


@pytest.mark.parametrize("part", PARTS)
def test_pages_show_what_the_committed_results_the_settings_and_the_snakefile_say(part, parts):
    shown = re.search(f"<!-- begin {part} -->\n(.*?)\n<!-- end {part} -->", "".join(PAGES.values()), re.DOTALL)[1]
    assert shown == parts[part], "run `make readme`"


def test_every_part_has_one_place(parts):
    assert sorted(PARTS) == sorted(parts)
    fill(PAGES, parts)


def test_parts_are_written_between_their_marks_in_the_page_that_has_them():
    pages = {
        "README.md": "a\n<!-- begin x -->\nold\n<!-- end x -->\nb",
        "docs/y.md": "<!-- begin y -->\n<!-- end y -->",
    }
    assert fill(pages, {"x": "new", "y": "other"}) == {
        "README.md": "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb",
        "docs/y.md": "<!-- begin y -->\nother\n<!-- end y -->",
    }


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"README.md": "no marks"}, "found them in no page"),
        ({"README.md": "<!-- begin x -->"}, "found them in README.md"),
        (dict.fromkeys(("README.md", "docs/a.md"), "<!-- begin x --><!-- end x -->"), "in README.md, docs/a.md"),
        ({"README.md": "<!-- begin x --><!-- end x -->" * 2}, "found them in README.md"),
        ({"docs/a.md": "<!-- begin z --><!-- end z -->"}, "docs/a.md: unknown part z in marks, expected one of x"),
    ],
    ids=["missing", "no end", "two pages", "twice", "unknown"],
)
def test_marks_that_are_missing_twice_there_or_unknown_are_refused(pages, message):
    with pytest.raises(KeepError, match=re.escape(message)):
        fill(pages, {"x": "text"})


def test_an_unknown_run_is_one_line_with_the_known_ones(capsys):
    ddl("readme", "--name", "nowhere", code=2)
    line = rf"error: results/reference/nowhere: not found; expected one of: .*{SHOWN}.*\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_the_headline_says_where_the_gain_comes_from_only_while_the_numbers_do(numbers):
    """If the scalar design had the baseline's loss, the gain would come from the expanded state."""
    claim = "most of the gain here needs no expanded state"
    for size, runs in numbers["runs"].items():
        runs["ddl-dv1"]["shown"]["delta"] |= {"mean": -0.6, "half_width": None}
        numbers["comparison"][size]["ours"]["best_shown"] |= {"mean": -0.7, "half_width": None}
    for deviation, claimed in ((0.01, True), (0.5, False)):
        numbers["noise"] = {size: {"difference": deviation} for size in numbers["runs"]}
        assert (claim in headline_part(numbers)) == claimed
    numbers["noise"] = dict.fromkeys(numbers["runs"])  # not measured
    assert claim not in headline_part(numbers)
    numbers["noise"] = {size: {"difference": 0.01} for size in numbers["runs"]}
    numbers["runs"]["small"]["ddl-dv1"]["shown"]["delta"] |= {"mean": 0.0, "decimals": 2}
    text = headline_part(numbers)
    assert claim not in text
    assert "that of DDL with one value channel is 0.00 (small)" in text.replace("-0.00", "0.00")


def test_mutations_are_counted_by_room_and_by_what_noticed_them(tmp_path, monkeypatch):
    head = "file,breaks,notebook,test,seconds,device"
    rows = [
        "ddl/ops/rewrite.py,nothing (control),none,none,3600,CPU",
        "ddl/ops/rewrite.py,a,05_gradient,tests/a.py::test,0,CPU",
        "ddl/ops/rewrite.py,b,05_gradient,none,0,CPU",
        "ddl/ops/rewrite.py,c,none,none,0,CPU",
        "ddl/ops/rewrite_triton.py,d,not run,tests/a.py::test,0,CPU",
        "ddl/data/build.py,e,not run,none,3600,CPU",
    ]
    monkeypatch.setattr(readme_module, "ROOT", tmp_path)
    (tmp_path / "made_up.csv").write_text(head)
    assert mutations_part(tmp_path / "made_up.csv").startswith("There are no numbers yet")
    (tmp_path / "made_up.csv").write_text("\n".join([head, *rows]))
    lines = mutations_part(tmp_path / "made_up.csv").splitlines()
    assert lines[2:6] == [
        "| `ddl/data/` | 1 | 0 | 0 | 0 | 1 | 1 |",
        "| `ddl/ops/` | 3 | 1 | 1 | 0 | 1 | 0 |",
        "| `ddl/ops/`, Triton kernels | 1 | 0 | 0 | 1 | 0 | 1 |",
        "| all | 5 | 1 | 1 | 1 | 2 | 2 |",
    ]
    assert "Noticed by neither: `ddl/ops/rewrite.py`: c; `ddl/data/build.py`: e." in lines
    assert "The whole list took 2.0 hours on one core (CPU)" in lines[-1]


def test_the_readme_is_a_front_door():
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_the_readme_maps_only_paths_that_exist_and_every_room():
    table = PAGES["README.md"].split("## Map")[1].split("## ")[0]
    cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    paths = {path for cell in cells for path in re.findall(r"`([^`]+)`", cell)}
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rooms = {f"ddl/{path.parent.name}/" for path in (ROOT / "ddl").glob("*/__init__.py")}
    assert rooms - paths == set()


def test_a_paired_difference_uses_the_common_seeds_and_shows_no_digit_that_is_noise():
    ours = {0: 4.4, 1: 4.5, 2: 4.3, 3: 9.0}
    assert shown_difference({0: 4.5123, 1: 4.6, 2: 4.41}, ours) == "+0.107 ± 0.016"
    assert shown_difference({0: 4.9, 1: 4.6, 2: 4.4}, ours) == "+0.2 ± 0.6"
    assert shown_difference({3: 4.5}, ours) == "–"
