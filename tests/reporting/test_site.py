"""The site: complete, linked without gaps, and working in a browser that has no network."""

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ddl.layout import DRAWN, ROOT, drawn_files
from ddl.reporting.claims import anchor, notebooks_of, read_claims
from ddl.reporting.quoted_numbers import report
from ddl.reporting.render_notebook import render
from ddl.reporting.site import SiteError, alternative, answer, build_site, sources
from tests.helpers import fake_results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def needs_browser(test):
    """A test of what a browser shows; `make test-shown` runs it, and other runs if there is a browser."""
    return pytest.mark.shown(pytest.mark.skipif(BROWSER is None, reason="no Chromium found")(test))


NARROW = 390  # pixels, a telephone
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><path d="M0 0h40"/></svg>'


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Invented results with a page for every notebook."""
    results = fake_results.write(tmp_path_factory.mktemp("site"))
    report(results)
    for file in [file for names in DRAWN.values() for name in names for file in drawn_files(name)]:
        (results / file).parent.mkdir(exist_ok=True)
        (results / file).write_text(SVG)
    for name in ("paper.pdf", "verdict.json"):
        (results / name).write_text("{}")
    for name, text in sources().items():
        title = re.findall(r"^# # (.*)$", text, re.M)[0]
        text = f"# {title}\n\nFor $\\beta = 1$ and $\\frac{{a}}{{b}}$.\n\n## One\n\n## Two\n\n| a |\n|---|\n| 1 |"
        cells = [new_markdown_cell(text), new_code_cell("a = 1", metadata={"tags": ["parameters"]})]
        (results / "notebooks").mkdir(exist_ok=True)
        (results / f"notebooks/{name}.html").write_text(
            render(new_notebook(cells=cells), ROOT / "notebooks" / f"{name}.py")
        )
    (results / "benchmarks").mkdir()
    (results / "benchmarks/data.tsv").write_text("s\th:m:s\n60.0\t0:01:00\n")
    return results


@pytest.fixture(scope="module")
def site(results) -> Path:
    build_site(results, results / "site")
    return results / "site"


class Page(HTMLParser):
    """Links, loaded files, anchors, and pictures without alternative text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.silent: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.anchors |= {values["id"] or ""} if "id" in values else set()
        self.targets += [value for name in ("href", "src") if (value := values.get(name))]
        if tag == "img" and not values.get("alt"):
            self.silent.append(values.get("src") or "")


def test_every_link_leads_somewhere_and_every_picture_has_a_text(site) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) == 1 + len(sources())
    for path, page in pages.items():
        assert not page.silent
        for target in page.targets:
            if re.match(r"https?:|data:", target):
                continue
            file, _, anchor = target.partition("#")
            reached = (path.parent / unquote(file)).resolve() if file else path
            assert reached.is_file(), (path.name, target)
            assert not anchor or anchor in pages[reached].anchors, (path.name, target)


def test_limits_are_said_unless_the_runs_are_those_of_the_paper(results, site) -> None:
    said = (site / "index.html").read_text()
    assert "What was not reproduced" in said
    assert "offline stand-ins" in said
    text = (results / "numbers.json").read_text()
    (results / "numbers.json").write_text(json.dumps(json.loads(text) | {"comparable": True}))
    build_site(results, results.parent / "paper-like")
    (results / "numbers.json").write_text(text)
    assert "What was not reproduced" not in (results.parent / "paper-like/index.html").read_text()


def test_every_statement_leads_to_the_pages_that_check_it_and_these_lead_back(site) -> None:
    start = (site / "index.html").read_text()
    for claim in read_claims():
        for number in notebooks_of(claim):
            name = next(name for name in sources() if name.startswith(number))
            assert f'href="notebooks/{name}.html#{anchor(claim)}"' in start
            assert '<a href="../index.html#claims">' in (site / f"notebooks/{name}.html").read_text()


def test_notebooks_are_linked_in_their_order(site) -> None:
    names = list(sources())
    pages = {name: (site / f"notebooks/{name}.html").read_text() for name in names}
    for before, after in itertools.pairwise(names):
        assert pages[before].count(f'rel="next" href="{after}.html"') == 2  # above and below
        assert pages[after].count(f'rel="prev" href="{before}.html"') == 2
    assert 'rel="prev"' not in pages[names[0]]
    assert 'rel="next"' not in pages[names[-1]]


def test_the_start_page_has_the_answers_of_the_notebooks_and_describes_the_figures() -> None:
    texts = sources()
    assert all(len(answer("", text)) > 40 for text in texts.values())  # the page of a notebook that has no answer
    page = "<p><strong>Question.</strong> Why?</p>\n<p><strong>Answer.</strong> <strong>Because\nof it.</strong></p>"
    assert answer(page, "") == "<p>Because\nof it.</p>"
    for name in (name for names in DRAWN.values() for name in names if not name.startswith("table")):
        assert len(alternative(texts, name)) > 20, name


def test_a_second_build_gives_the_same_bytes_and_removes_what_is_old(results, site, tmp_path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again/old.html").write_text("old")
    build_site(results, tmp_path / "again")
    files = {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    again = tmp_path / "again"
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}


def test_a_missing_file_is_named_and_the_old_site_stays(results, tmp_path) -> None:
    broken = tmp_path / "laptop"
    shutil.copytree(results, broken)
    (broken / "site").mkdir(exist_ok=True)
    (broken / "site/index.html").write_text("old")
    (broken / "figures/figure2.svg").unlink()
    with pytest.raises(SiteError, match=r"figures/figure2\.svg: not found"):
        build_site(broken, broken / "site")
    assert (broken / "site/index.html").read_text() == "old"


# In a browser. A script is added to a copy of the page; it leaves what it measured in the document.

MEASURE = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(String(event.message || event.target.src)), true);
window.addEventListener("load", () => setTimeout(async () => {
  const found = await (async () => { %s })();
  document.getElementById("measured").textContent = "BEGIN" + JSON.stringify({...found, errors}) + "END";
}, 1500));
</script>"""


def browse(page: Path, script: str, width: int = 1280) -> dict[str, object]:
    """What the script returns after the page has loaded, in a browser that cannot reach any host."""
    copy = page.with_name(f"measured-{page.name}")
    text = page.read_text().replace("<head>", f"<head>{MEASURE % script}")
    copy.write_text(text.replace("</body>", '<pre id="measured" hidden></pre></body>'))
    try:
        done = subprocess.run(
            [
                str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--window-size={width},2000", "--virtual-time-budget=20000", "--dump-dom", copy.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    finally:
        copy.unlink()
    found = re.findall(r"BEGIN(\{.*\})END", done.stdout)
    assert found, done.stderr[-2000:]
    return dict(json.loads(html.unescape(found[-1])))


LAYOUT = """
const box = each => each.getBoundingClientRect();
return {
  wide: document.documentElement.scrollWidth - window.innerWidth,
  formulas: document.querySelectorAll("math").length,
  empty: [...document.querySelectorAll("math")].filter(each => !box(each).width || !box(each).height).length,
  charts: [...document.querySelectorAll(".chart")].filter(each => box(each).height > 100).length,
  broken: [...document.images].filter(each => each.loading != "lazy" && !each.naturalWidth).length,
};"""


@needs_browser
@pytest.mark.parametrize("width", [NARROW, 1280])
@pytest.mark.parametrize("page", ["index.html", "notebooks/01_delta_rule.html", "notebooks/13_evidence.html"])
def test_pages_show_formulas_and_charts_and_do_not_scroll_sideways(site, page, width) -> None:
    found = browse(site / page, LAYOUT, width)
    charts = (site / page).read_text().count('class="chart"')
    assert found == {"wide": min(found["wide"], 0), "formulas": found["formulas"], "empty": 0, "charts": charts,
                     "broken": 0, "errors": []}  # fmt: skip
    assert found["formulas"] > 0


@needs_browser
def test_the_gate_moves_the_charts_and_a_click_shows_the_code(site) -> None:
    slide = """
const data = name => Bokeh.documents.map(each => each.get_model_by_name(name)).find(Boolean).data;
const measured = () => [...data("now").y, data("moved").x[0], data("path").x[0], data("path").x[1]];
const before = measured(), slider = document.getElementById("beta");
slider.value = 2;
slider.dispatchEvent(new Event("input"));
return {before, after: measured(), said: document.getElementById("beta-shown").textContent};"""
    found = browse(site / "index.html", slide)
    (eigenvalue, singular, moved, start, end), after = found["before"], found["after"]
    assert (eigenvalue, singular, moved) == pytest.approx((0.5, 0.5, start + (end - start) / 4))
    assert (after[:3], found["said"], found["errors"]) == ([-1, 1, end], "2.00", [])
    click = """
const details = () => [...document.querySelectorAll("details.code")].map(each => each.open);
const before = details();
document.getElementById("all-code").click();
return {before, after: details()};"""
    found = browse(site / "notebooks/01_delta_rule.html", click)
    assert (found["before"], found["after"], found["errors"]) == ([False], [True], [])


@needs_browser
def test_designs_are_filtered_by_family_and_by_seeds(site) -> None:
    found = browse(
        site / "index.html",
        """
const chart = () => model("ordering-small");
const shown = () => [chart().y_range.factors.length, chart().frame_height];
const all = shown();
filters.querySelector("[value=rival]").click();
const own = shown();
seeds.value = 5;
seeds.dispatchEvent(new Event("input", {bubbles: true}));
return {all, own, sure: chart().y_range.factors, tags: chart().y_range.tags};""",
    )
    own = [name for name, family, _ in found["tags"] if family != "rival"]
    assert found["all"][0] == len(found["tags"]) > found["own"][0] == len(own)
    assert found["all"][1] / found["all"][0] == found["own"][1] / found["own"][0]
    assert found["sure"] == [name for name, family, seeds in found["tags"] if family != "rival" and seeds >= 5]
    assert 0 < len(found["sure"]) < len(own)
    assert found["errors"] == []


@needs_browser
@pytest.mark.parametrize("page", ["index.html", "notebooks/01_delta_rule.html"])
def test_nothing_serious_is_inaccessible(site, page) -> None:
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    (site / "axe.min.js").write_text(axe)
    script = """
await new Promise(done => {
  const added = document.createElement("script");
  added.src = "%s";
  added.onload = done;
  document.head.append(added);
});
const result = await axe.run(document, {resultTypes: ["violations"]});
return {found: result.violations.filter(each => ["serious", "critical"].includes(each.impact))
  .map(each => [each.id, each.nodes[0].html.slice(0, 200), each.nodes.length])};"""
    try:
        found = browse(site / page, script % ("axe.min.js" if page == "index.html" else "../axe.min.js"))
    finally:
        (site / "axe.min.js").unlink()
    assert found["found"] == []
