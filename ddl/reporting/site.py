"""Build the site of a scale: a start page, the notebooks with links between them, figures, tables and the paper.

    ddl site --results results/laptop --out results/laptop/site

The folder opens from disk, without a network or a server. Bokeh's script, which draws the interactive charts, is
copied from the installed package.
"""

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from bokeh.embed import json_item
from bokeh.model import Model
from markupsafe import Markup
from pygments.formatters import HtmlFormatter

from ddl.config import SIZES, load_scale
from ddl.errors import UserError
from ddl.layout import DRAWN, ROOT, STUDY, drawn_files
from ddl.reporting import charts
from ddl.reporting.claims import anchor, claims_table, notebooks_of, read_claims
from ddl.reporting.evidence import findings
from ddl.reporting.judged_claims import SCALE
from ddl.reporting.read_results import Results
from ddl.reporting.readme_studies import verdicts_part
from ddl.reporting.render_notebook import ALL_CLAIMS, SITE, TEMPLATES, formula, remote_references, to_html
from ddl.reporting.rivals import compared
from ddl.reporting.stage_times import by_stage, job_seconds
from ddl.reporting.table_format import DASH, count

SCRIPT = "bokeh.min.js"
START = "index.html"
RULE = r"\mathbf{X}' = \mathbf{X} + \beta\,\mathbf{k}\,(\mathbf{v}^\top - \mathbf{k}^\top\mathbf{X})"


class SiteError(UserError):
    """Results that are not complete enough for a site; the message names the missing file."""


def build_site(results: Path, out: Path) -> None:
    """Write the site, in place of an earlier one.

    Raises:
        SiteError: a page, figure or table of the results is missing.
        ResultsError: the folder holds no results of a scale.
    """
    found = Results(results)
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted((results / "notebooks").glob("*.html"))}
    drawn = [name for names in DRAWN.values() for name in names]
    files = ["paper.pdf", "verdict.json", *(file for name in drawn for file in drawn_files(name))]
    for file in (*files, *(f"notebooks/{name}.html" for name in sources())):
        if not (results / file).is_file():
            raise SiteError(f"{results / file}: not found; the site needs it, so build it first")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "notebooks").mkdir(parents=True)
    for file in files:
        (partial / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(results / file, partial / file)
    (partial / SCRIPT).write_bytes(resources.files("bokeh").joinpath("server/static/js", SCRIPT).read_bytes())
    titles = {name: re.findall(r"<title>(.*?)</title>", page, re.S)[0] for name, page in pages.items()}
    names = list(sources())
    for place, name in enumerate(names):
        (partial / "notebooks" / f"{name}.html").write_text(linked(pages[name], names, titles, place), encoding="utf-8")
    page = start_page(found, {name: (titles[name], answer(pages[name], sources()[name])) for name in names})
    if remote := remote_references(page):
        raise SiteError(f"the start page would load {remote[0]}, expected no remote resources")
    (partial / START).write_text(page, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def sources() -> dict[str, str]:
    """Name -> text of every notebook that is a page of the site."""
    paths = sorted((ROOT / "notebooks").glob("[0-9]*_*.py"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths if path.stem != STUDY}


def linked(page: str, names: list[str], titles: dict[str, str], place: int) -> str:
    """A notebook's page with links to the start page and its neighbours."""
    links = [f'<a href="../{START}">Contents</a>']
    if place:
        links.insert(0, f'<a rel="prev" href="{names[place - 1]}.html">← {titles[names[place - 1]]}</a>')
    if place + 1 < len(names):
        links.append(f'<a rel="next" href="{names[place + 1]}.html">{titles[names[place + 1]]} →</a>')
    page = page.replace(ALL_CLAIMS, f'<a href="../{START}#claims">All statements.</a>')
    return page.replace(SITE, f'<nav class="neighbours" aria-label="Notebooks">{"".join(links)}</nav>')


def start_page(results: Results, notebooks: dict[str, tuple[str, str]]) -> str:
    """The start page as HTML.

    Args:
        notebooks: name -> (title, answer), both as HTML.
    """
    first, *rest = findings().values()
    texts = sources()
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES / "template"), autoescape=True)
    numbers = json.loads((results.path / "numbers.json").read_text(encoding="utf-8"))
    drawn = [name for names in DRAWN.values() for name in names]
    return environment.get_template("start.html.j2").render(
        rule=formula(RULE, display=True),
        scale=results.scale_phrase,
        first=with_subscript(first),
        rest=[with_subscript(sentence) for sentence in rest],
        verdicts=with_subscript(to_html(verdicts_part())),
        notebooks=notebooks,
        figures=[(name, alternative(texts, name), drawn_files(name)) for name in drawn if not name.startswith("table")],
        tables=[(name, drawn_files(name)) for name in drawn if name.startswith("table")],
        claims=all_claims(),
        charts=interactive(results),
        comparable=numbers["comparable"],
        corpus=results.scale.corpus.description,
        offline=results.scale.evaluation.tasks == "offline",
        study_tokens=count(load_scale(SCALE).tokens),
        gate=charts.GATE,
        families=charts.FAMILIES,
        row_height=charts.ROW_HEIGHT,
        provenance=numbers["provenance"],
        stages=[stage for stage in by_stage(job_seconds(results.path)) if stage["jobs"]],
        highlight_css=HtmlFormatter(style="friendly").get_style_defs(".highlight"),
    )


def all_claims() -> dict[str, Any]:
    """All statements with what came out, as an HTML table, and how many there are and were checked."""
    pages = {name[:2]: name for name in sources()}
    claims = read_claims()
    checked = sum(bool(notebooks_of(claim)) for claim in claims)
    for claim in claims:
        links = [f"[{n}](notebooks/{pages[n]}.html#{anchor(claim)})" for n in notebooks_of(claim)]
        claim["Notebook"] = ", ".join(links) or DASH
    columns = ("Paper", "Version", "Claim", "Notebook", "Verified by", "Outcome, and what is inexact")
    return {"count": len(claims), "checked": checked, "table": Markup(to_html(claims_table(claims, columns)))}


def with_subscript(text: str) -> Markup:
    """Text in which d_v has its subscript."""
    return Markup(text.replace("d_v", "<i>d<sub>v</sub></i>"))


def interactive(results: Results) -> dict[str, str]:
    """Name of a place in the start page -> the chart there, as JSON for Bokeh; a chart without data is left out."""
    shown: dict[str, Model] = {"gate": charts.gate()}
    for size in results.sizes:
        shown[f"curves-{size}"] = charts.curves(results, size)
    for size in SIZES:
        if differences := {each.slug: each.over_baseline for each in compared(size) if each.over_baseline}:
            shown[f"ordering-{size}"] = charts.ordering(differences, size)
    return {name: as_json(chart, name) for name, chart in shown.items()}


def as_json(chart: Model, place: str) -> str:
    """A chart as JSON for a script element of a page, with the same bytes in every process."""
    text = json.dumps(json_item(chart, place)).replace("<", "\\u003c")  # "<" could end the script
    found = dict.fromkeys(re.findall(r'"p\d+"', text))  # Bokeh counts the models of a process
    numbers = {old: f'"p{number}"' for number, old in enumerate(found)}
    return re.sub(r'"p\d+"', lambda match: numbers[match[0]], text)


def answer(page: str, source: str) -> str:
    """What a notebook answers, as HTML; of one without an answer in bold, the first paragraph after its title."""
    if found := re.search(r"<p><strong>Answer\.</strong>\s*(.*?)</p>", page, re.S):
        return f"<p>{re.sub('</?strong>', '', found[1])}</p>"
    text = re.findall(r"^# # .*?\n#\n(.*?)\n(?:#\n|\n)", source, re.M | re.S)[0]
    return to_html(" ".join(line.removeprefix("# ") for line in text.splitlines()))


def alternative(texts: dict[str, str], name: str) -> str:
    """The alternative text of a figure, from the cell of a notebook that saves it."""
    for text in texts.values():
        for cell in re.split(r"^# %%", text, flags=re.M):
            found = re.search(r'alt="([^"]*)"', cell.split("\n")[0])
            if found and f'"{name}"' in cell and re.search("(save|loss)_figure", cell):
                return found[1]
    return name
