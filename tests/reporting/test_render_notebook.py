"""The notebook runner: parameters, failures, and standalone, reproducible pages with formulas as MathML."""

import itertools
import json
import re
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.exceptions import PapermillExecutionError

from ddl.layout import ROOT
from ddl.reporting import render_notebook
from ddl.reporting.claims import anchor, read_claims
from ddl.reporting.render_notebook import (
    NotebookError,
    fold,
    formula,
    read_notebook,
    remote_references,
    render,
    run_notebook,
    with_contents,
)
from tests.helpers.command import ddl

TEXT = r"""# %% [markdown]
# # A small notebook
#
# Inline $\beta \in (0, 2)$ and a numbered rule:
#
# $$\mathbf{X}' = \mathbf{X} + \beta\,\mathbf{k}\,(\mathbf{v}^\top - \mathbf{k}^\top\mathbf{X}). \tag{2.2}$$
#
# \begin{align*} a &= b + c \\ &= d \end{align*}
#
# > What the paper says.

"""
PARAMETERS = """# %% tags=["parameters"]
results = "nowhere"
times = 1

"""
BODY = """# %%
from pathlib import Path

import matplotlib.pyplot as plt
import sympy

figure, axes = plt.subplots(figsize=(2, 1))
axes.plot([0, 1], [0, times], label="line")
axes.legend()
Path(results).mkdir()
figure.savefig(Path(results) / "figure.svg")
for _ in range(3):
    print(f"times is {times}, in {Path.cwd().name}", flush=True)
sympy.Matrix([[1 - sympy.Symbol("beta"), 0], [0, 1]])
"""


def write(folder: Path, *cells: str) -> Path:
    path = folder / "small.py"
    path.write_text("".join(cells))
    return path


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """The pages from two runs of one notebook, and the folder with the figure of the first run."""
    folder = tmp_path_factory.mktemp("twice")
    source = write(folder, TEXT, PARAMETERS, BODY)
    pages = []
    for name in ("first", "second"):
        (folder / name).mkdir()
        run_notebook(source, folder / name / "small.html", {"results": str(folder / "results"), "times": 7})
        pages.append((folder / name / "small.html").read_text())
        (folder / "results").rename(folder / name / "results")
    return pages[0], pages[1], folder


def test_parameters_reach_the_notebook_which_runs_in_the_repository(twice: tuple[str, str, Path]) -> None:
    assert f"times is 7, in {ROOT.name}" in twice[0]
    assert (twice[2] / "first" / "results" / "figure.svg").is_file()


def test_two_runs_give_the_same_bytes(twice: tuple[str, str, Path]) -> None:
    first, second, folder = twice
    assert first == second
    for file in ("results/figure.svg", "small.ipynb"):
        one, other = ((folder / name / file).read_bytes() for name in ("first", "second"))
        assert one == other


def test_lines_printed_one_by_one_are_one_output(twice: tuple[str, str, Path]) -> None:
    assert twice[0].count("times is 7") == 3
    assert twice[0].count('<pre class="output stdout">') == 1


def test_formulas_are_mathml_and_nothing_is_left_of_their_source(twice: tuple[str, str, Path]) -> None:
    page = twice[0]
    assert page.count("<math") == 4  # inline, numbered, aligned, sympy's result
    assert "$$" not in page
    assert r"\begin{align" not in page
    assert '<span class="number">(2.2)</span>' in page


def test_page_needs_no_network(twice: tuple[str, str, Path]) -> None:
    page = twice[0]
    assert remote_references(page) == []
    assert page.count("<script") == page.count("<script>") == 1  # the button that opens folded code
    assert 'src="data:image/svg+xml;base64,' in page


def test_parameters_and_imports_are_folded_into_one(twice: tuple[str, str, Path]) -> None:
    (folded,) = re.findall(r'<details class="code">.*?</details>', twice[0], re.S)
    code = re.sub("<[^>]+>", "", folded)
    assert code.startswith("Code: set-up")
    assert code.index("times = 1") < code.index("times = 7") < code.index("import sympy")


def test_a_page_of_results_folds_all_code() -> None:
    notebook = new_notebook(cells=[new_code_cell(source) for source in ("print(1)", "x = 1", "y = 2", "x + y")])
    notebook.cells[0]["outputs"] = [new_output("stream", text="1")]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    fold(notebook, everything=True)
    assert [cell.source for cell in notebook.cells] == ["print(1)", "x = 1\n\ny = 2\n\nx + y"]
    assert [cell.metadata["summary"] for cell in notebook.cells] == ["Code: set-up", "Code"]


def test_sections_have_anchors_and_are_listed() -> None:
    page = with_contents("<!-- contents --><h1>T</h1><h2>Why <b>1 &lt; 2</b>?</h2><h3>Part</h3><h2>Why 1 2</h2>")
    assert re.findall(r'<li><a href="#([^"]+)">', page) == ["why-1-2", "why-1-2-again"]
    assert re.findall(r'<h[23] id="([^"]+)">', page) == ["why-1-2", "part", "why-1-2-again"]
    assert with_contents("<!-- contents --><p>Short</p>") == "<p>Short</p>"


def test_a_page_says_its_place_its_source_and_its_commit() -> None:
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell("a = 1")])
    notebook.cells[1].metadata["tags"] = ["parameters"]
    page = render(notebook, ROOT / "notebooks" / "02_spectrum.py")
    assert re.search(r"Notebook 2 of \d+", page)
    assert "<code>notebooks/02_spectrum.py</code>" in page
    assert "torch " in page.partition("<footer>")[2]


def test_a_page_lists_the_statements_that_it_checks_and_labels_in_its_code_lead_there() -> None:
    code = 'assert a == 1, "bounded-spectrum"\nassert a < 2, f"frozen-eigenvalues: {a}"'
    cells = [new_markdown_cell("# Title"), new_code_cell("a = 1", metadata={"tags": ["parameters"]})]
    page = render(new_notebook(cells=[*cells, new_code_cell(code)]), ROOT / "notebooks" / "02_spectrum.py")
    claims = read_claims("02")
    assert len(claims) > 2
    assert all(f'<span id="{anchor(claim)}">{claim["Paper"]}</span>' in page for claim in claims)
    assert '"<a href="#claim-bounded-spectrum">bounded-spectrum</a>"' in page
    assert '"<a href="#claim-frozen-eigenvalues">frozen-eigenvalues</a>: ' in page
    assert '<li><a href="#statements-that-this-page-checks">' in page
    assert "Statements that this page checks" not in render(new_notebook(cells=cells), Path("small.py"))


def test_a_caption_stands_below_its_figure() -> None:
    figure = new_output("display_data", {"image/png": "AAAA"})
    drawn = new_code_cell("draw()", outputs=[figure], metadata={"alt": "A line"})
    cells = [new_code_cell("a = 1", metadata={"tags": ["parameters"]})]
    for code, caption in ((drawn, "The line of $x$."), (new_code_cell("draw_nothing()"), "Of nothing.")):
        cells += [code, new_markdown_cell(caption, metadata={"tags": ["caption"]})]
    page = render(new_notebook(cells=cells), Path("small.py"))
    assert re.search(r'alt="A line"><figcaption><p>The line of <math.*</math>\.</p>\s*</figcaption></figure>', page)
    assert "Of nothing" not in page


@pytest.mark.parametrize("source", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_figure_has_an_alternative_text_and_a_caption(source: Path) -> None:
    cells = jupytext.read(source).cells
    for cell, following in itertools.pairwise([*cells, new_markdown_cell()]):
        caption = "caption" in following.metadata.get("tags", [])
        assert ("alt" in cell.metadata) == caption, cell.source[:200]
        shows = re.search(r"plt\.show\(\)|^save_figure\(|^\w+_figure\(", cell.source, re.M)
        assert bool(shows) == caption or "table" in cell.source, cell.source[:200]


def test_page_shows_no_prompts(twice: tuple[str, str, Path]) -> None:
    assert "In&nbsp;[" not in twice[0]
    assert "[1]:" not in twice[0]


def test_the_executed_notebook_stands_beside_the_page(twice: tuple[str, str, Path]) -> None:
    executed = nbformat.read(twice[2] / "first" / "small.ipynb", as_version=4)
    nbformat.validate(executed)
    printed = [out["text"] for cell in executed.cells for out in cell.get("outputs", []) if out.get("name") == "stdout"]
    assert len(printed) == 1
    assert "times is 7" in printed[0]


def test_kernel_is_this_interpreter_whatever_the_user_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["false", "{connection_file}"], "display_name": "Mine", "language": "python"})
    )
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("surprise = True\n")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    check = '# %%\nimport sys\n\nassert sys.executable == python\nassert "surprise" not in globals()\n'
    source = write(tmp_path, '# %% tags=["parameters"]\npython = ""\n\n', check)
    page = tmp_path / "small.html"
    run_notebook(source, page, {"python": sys.executable})
    assert page.is_file()  # there is no page if a cell fails


def test_failing_cell_is_named_and_kept_and_no_page_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pages" / "small.html"
    page.parent.mkdir()
    page.write_text("the page of an earlier run")
    source = write(tmp_path, PARAMETERS, '# %%\nprint("fine")\n\n', '# %%\nraise ValueError("first\\nlast line")\n')
    ddl("notebook", source, "--html", page, "--parameters", '{"times": 2}', code=1)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{source}: code cell 3 failed: ValueError: last line" in last
    assert "small.failed.ipynb" in last
    assert [path.name for path in page.parent.iterdir()] == ["small.failed.ipynb"]
    kept = json.loads((page.parent / "small.failed.ipynb").read_text())
    assert any("fine" in json.dumps(cell.get("outputs")) for cell in kept["cells"])


def test_kernel_that_dies_is_a_failure_of_the_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, PARAMETERS, "# %%\nimport os\n\nos._exit(1)\n")
    ddl("notebook", source, "--html", tmp_path / "small.html", code=1)
    assert f"{source}: the kernel died" in capsys.readouterr().err
    assert not (tmp_path / "small.html").exists()


def test_a_failure_of_the_kernel_itself_is_one_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(notebook: nbformat.NotebookNode, executed: Path, parameters: object) -> None:
        nbformat.write(notebook, executed)  # without outputs: the kernel could not even report an error
        raise PapermillExecutionError(1, 2, "x = 1", "CellExecutionError", "no memory", ["no traceback"])

    monkeypatch.setattr(render_notebook, "_execute", fail)
    source = write(tmp_path, PARAMETERS, "# %%\nx = 1\n")
    ddl("notebook", source, "--html", tmp_path / "small.html", code=1)
    assert f"{source}: code cell 2 failed: CellExecutionError: no memory; see" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cells", "parameters", "message"),
    [
        ([PARAMETERS], '{"time": 2}', "unknown parameter 'time', expected one of results, times"),
        (["# %%\nx = 1\n"], "{}", 'expected one cell `# %% tags=["parameters"]`, found 0'),
        ([PARAMETERS, PARAMETERS], "{}", "found 2"),
        ([PARAMETERS], "{times: 2}", "'{times: 2}' is not JSON"),
        ([PARAMETERS], "[2]", "expected a JSON object, found '[2]'"),
    ],
    ids=["unknown", "untagged", "tagged-twice", "no-json", "no-object"],
)
def test_mistake_is_one_line_that_names_the_notebook_or_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: list[str], parameters: str, message: str
) -> None:
    source = write(tmp_path, *cells)
    ddl("notebook", source, "--html", tmp_path / "small.html", "--parameters", parameters, code=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(source) in error or "'--parameters'" in error
    assert message in error


def test_absent_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match=r"absent\.py: notebook not found"):
        read_notebook(tmp_path / "absent.py", {})


@pytest.mark.parametrize(
    "latex",
    [
        r"\nosuchcommand x",
        r"\frac{1}{",
        r"\frac{1}",
        r"x_1_2",
        r"a}",
        r"{a",
        r"a & b",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
    ],
)
def test_formula_that_would_be_shown_wrongly_is_refused(latex: str) -> None:
    with pytest.raises(NotebookError, match="formula"):
        formula(latex, display=True)


def test_bars_enclose_and_are_no_relation() -> None:
    forms = re.findall(r'form="(\w+)">(?:\||&#x0007C;)<', formula(r"|k| = |\tilde{k}|", display=False))
    assert forms == ["prefix", "postfix"] * 2


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<link rel='stylesheet' href='//cdn.example/x.css'>",
        '<img alt="" src=http://cdn.example/x.png>',
        "<style>@import 'https://cdn.example/x.css';</style>",
        "<style>p { background: url( https://cdn.example/x.woff2 ) }</style>",
    ],
)
def test_remote_references_are_found(html: str) -> None:
    assert len(remote_references(html)) == 1


def test_links_and_namespaces_are_not_remote_references() -> None:
    links = '<a href="https://arxiv.org/abs/2601.00417">paper</a><svg xmlns="http://www.w3.org/2000/svg"></svg>'
    assert remote_references(links) == []
