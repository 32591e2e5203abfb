import functools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import typst

from ddl.layout import DRAWN, ROOT
from ddl.reporting import figures as report
from ddl.reporting import quoted_numbers, seed_noise
from ddl.reporting import typeset_paper as paper
from ddl.reporting.accuracy_tables import downstream_table
from ddl.reporting.loss_and_cost_tables import cost_table, loss_table
from ddl.reporting.quoted_numbers import write_numbers
from ddl.reporting.read_results import Results
from ddl.reporting.read_results import published as published_table
from ddl.reporting.rivals import compared, rivals_table
from ddl.reporting.table_format import DASH, write_table
from tests.helpers import fake_results
from tests.helpers.command import ddl

matplotlib.use("agg")


DRAWN_FOR_THE_PAPER = (*DRAWN["13_evidence"], "gates", "overwriting", "interventions")
FIGURES = ("figure1", "figure2", "figure3", "figure4", "compute", "gradients", "accuracies", *DRAWN_FOR_THE_PAPER)


def build(results: Path) -> Path:
    """Write all inputs of the paper, with empty figures."""
    data = Results(results)
    write_numbers(data)
    frames = {1: ("small", 1), 2: ("medium", 1), 7: ("small", 0), 8: ("medium", 0)}
    for number, (size, shots) in frames.items():
        write_table(downstream_table(data, size, shots), results, f"table{number}", "caption")
    write_table(loss_table(data), results, "table3", "caption")
    write_table(cost_table(data, "small"), results, "table4", "caption")
    write_table(cost_table(data, "medium"), results, "table5", "caption")
    write_table(published_table("architecture").drop(columns=["version", "table"]), results, "table6", "caption")
    write_table(rivals_table({"small": compared("small")}), results, "table-rivals", "caption")
    figure = plt.figure(figsize=(2, 1))
    for name in (name for names in DRAWN.values() for name in names if not name.startswith("table")):
        report.save_figure(figure, results, name)
    plt.close(figure)
    return results


@pytest.fixture(scope="module", autouse=True)
def _same_studies() -> Iterator[None]:
    """Losses are printed with two decimals, whatever rows the noise study has; the other studies are read once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(seed_noise, "NOISE_STUDY", "learning-rate-smoke")  # has no rows
        for name in ("evidence", "rivals"):
            patched.setattr(quoted_numbers, name, functools.cache(getattr(quoted_numbers, name)))
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(fake_results.write(tmp_path_factory.mktemp("paper")))


@pytest.fixture
def results(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "laptop"))


def text_of(results: Path, tmp_path: Path) -> str:
    """The paper's text in reading order, as laid out by typst."""
    root = paper.stage(results, tmp_path / "stage")
    parts: list[str] = []
    for selector in ("par", "figure"):
        found = typst.query(
            str(root / "paper/main.typ"),
            selector,
            root=str(root),
            sys_inputs={"results": "/results"},
            font_paths=typst.Fonts(include_system_fonts=False),
        )
        parts += strings(json.loads(found))
    shutil.rmtree(root)
    return re.sub(r"\s+", " ", "".join(parts))


def strings(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for child in node:
            yield from strings(child)
    elif isinstance(node, dict):
        if node.get("func") in ("space", "cell", "par", "figure"):
            yield " "
        if isinstance(node.get("text"), str):
            yield str(node["text"])
        for value in node.values():
            if isinstance(value, (dict, list)):
                yield from strings(value)


def test_paper_is_a_pdf_and_the_same_bytes_every_time(results: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a.pdf", "b.pdf")]
    for out in outs:
        ddl("paper", "--results", results, "--out", out)
    first = outs[0].read_bytes()
    assert first.startswith(b"%PDF-")
    assert first == outs[1].read_bytes()
    assert b"pdfuaid" in first  # metadata that declares the standard


def test_a_changed_result_changes_the_text(results: Path, tmp_path: Path) -> None:
    before = text_of(results, tmp_path)
    assert "4.41" in before
    assert "7.78" not in before
    file = results / "evals/small/baseline/seed0/validation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"val_loss": 7.7777}))
    after = text_of(build(results), tmp_path)
    assert "7.78" in after
    assert "The largest gain is 3.49 nats (DDL-CC w/o EC, small)" in after  # 7.7777 - 4.2900
    assert "3.49" not in before


def test_the_prose_follows_the_sign_of_the_result(results: Path, tmp_path: Path) -> None:
    assert "5 of 5 small and 5 of 5 medium end at a lower loss" in text_of(results, tmp_path)
    file = results / "evals/small/baseline/seed0/validation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"val_loss": 1.0}))
    text = text_of(build(results), tmp_path)
    assert "0 of 5 small and 5 of 5 medium end at a lower loss" in text
    assert "negative at the small size" in text


def test_published_speed_names_the_revised_text_where_only_that_has_it(results: Path, tmp_path: Path) -> None:
    text = text_of(results, tmp_path)
    assert "0.45 (DDL-TC w/o EC, small, revised text) and 0.45 (DDL-TC w/o EC, medium, revised text)" in text


def test_no_source_code_shows_in_the_text(results: Path, tmp_path: Path) -> None:
    text = text_of(results, tmp_path)
    for leftover in ("num.", "else [", "#", "none", "setting("):
        assert leftover not in text


def test_every_choice_is_in_the_paper_with_its_value(results: Path, tmp_path: Path) -> None:
    text = text_of(results, tmp_path)
    rows = json.loads((results / "numbers.json").read_text())["choices"]
    assert [row["topic"] for row in rows if row["topic"] not in text or row["source"] not in text] == []
    assert "every 64 steps on 256 fixed sequences" in text


def test_the_paper_names_accuracies_that_no_number_of_right_answers_gives(results: Path, tmp_path: Path) -> None:
    assert "32.07 percent of DDL" in text_of(results, tmp_path)
    file = results / "numbers.json"
    numbers = json.loads(file.read_text())
    numbers["published_counts"]["impossible"] = []
    file.write_text(json.dumps(numbers))
    text = text_of(results, tmp_path)
    assert "192 published accuracies in single tasks, 192 are" in text
    assert "No number of right answers" not in text


def test_paper_without_any_run_has_dashes_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "laptop").mkdir()
    results = build(tmp_path / "laptop")
    paper.compile_paper(results, tmp_path / "paper.pdf")
    text = text_of(results, tmp_path)
    assert f"{DASH} parameters" in text
    assert "validation.json is missing" in text
    assert "No rewrite design can be compared with the baseline" in text


def test_no_measured_or_published_number_is_typed_into_the_source() -> None:
    source = (ROOT / "paper/main.typ").read_text()
    source = re.sub(r"//.*", "", source)
    source = re.sub(r'"[^"\n]*"', "", source)  # paths, keys and alternative texts contain no results; checked below
    source = re.sub(r"\$[^$]*\$", "", source)  # formulas
    source = re.sub(r"\b\d+(\.\d+)?(pt|em|cm|fr|%)", "", source)  # layout
    source = re.sub(r"@\w+|<\w+>|beta[12]", "", source)  # references, names of settings
    source = re.sub(r"\bin \(1, 0\)", "", source)  # shots
    source = re.sub(r", \d\)|\bnumber: \d", ")", source)  # decimals shown, the paper's numbers of figures and tables
    source = re.sub(r"slice\([^)]*\)|at\(\d\)|table-path\(\d\)|in \(\(\d.*|== 1\b|> 0\b|== 0\b", "", source)
    source = re.sub(r"/ 60\b|calc\.min\(12", "", source)  # seconds to minutes, digits of a commit
    assert re.findall(r"\d+", source) == []
    quoted = re.findall(r'"([^"\n]*)"', (ROOT / "paper/main.typ").read_text())
    assert not [text for text in quoted if re.search(r"\d\.\d|\b\d{2}", text)]


def test_every_table_and_figure_of_the_paper_is_included(results: Path, tmp_path: Path) -> None:
    source = (ROOT / "paper/main.typ").read_text()
    root = paper.stage(results, tmp_path / "stage")
    for name in (*FIGURES, "rivals-table", "rivals-cost", *(f"table{number}" for number in range(1, 9))):
        found = typst.query(
            str(root / "paper/main.typ"), f"<{name}>", root=str(root), sys_inputs={"results": "/results"}
        )
        assert len(json.loads(found)) == 1, name
        assert f"@{name}" in source  # and the text refers to it


def test_missing_result_is_one_line_that_names_it_and_leaves_the_old_paper(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "tables/table5.csv").unlink()
    out = tmp_path / "paper.pdf"
    out.write_bytes(b"old")
    ddl("paper", "--results", results, "--out", out, code=2)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "tables/table5.csv: not found" in message
    assert out.read_bytes() == b"old"


def test_refusal_of_typst_is_one_line(results: Path, tmp_path: Path) -> None:
    numbers = json.loads((results / "numbers.json").read_text())
    del numbers["comparison"]
    (results / "numbers.json").write_text(json.dumps(numbers))
    with pytest.raises(paper.PaperError, match="comparison") as refused:
        paper.compile_paper(results, tmp_path / "paper.pdf")
    assert "\n" not in str(refused.value)
    assert "tmp" not in str(refused.value)
    assert list(tmp_path.glob("*.pdf")) == []
