"""Run a notebook and render it as a standalone HTML page; the executed notebook is written beside it.

    ddl notebook notebooks/01_delta_rule.py --html results/laptop/notebooks/01_delta_rule.html \\
        --parameters '{"results": "results/laptop"}'

1. jupytext reads the py:percent file. Its cell tagged `parameters` defines the parameters.
2. papermill executes it from the repository's root, in a kernel with the interpreter of this command. The user's kernel
   specs, IPython profile and matplotlibrc are ignored, so the page depends only on the repository.
3. nbconvert fills `notebooks/template`. Formulas become MathML, so the page needs no JavaScript, fonts or network.

Cell options after `# %%`: `tags=["fold"]` folds the code, under the heading `summary="..."`; `alt="..."` is the
alternative text of the figure. A Markdown cell with `tags=["caption"]` is the caption of the figure above it.
Parameters, imports, and all code of notebooks that show results are folded anyway; a button opens all of it.
"""

import ast
import base64
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jupytext
import latex2mathml.converter
import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbconvert.exporters import TemplateExporter
from nbconvert.filters.ansi import strip_ansi
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from pygments.formatters import HtmlFormatter
from traitlets import default

from ddl.errors import UserError
from ddl.files import write_text
from ddl.layout import DRAWN, ROOT, STUDY
from ddl.provenance import provenance
from ddl.reporting.claims import Claim, anchor, claims_table, read_claims

TEMPLATES = ROOT / "notebooks"  # contains the folder `template`
PARAMETERS_TAG = "parameters"
INJECTED_TAG = "injected-parameters"  # tag that papermill gives the cell it adds
CAPTION_TAG = "caption"
SITE = "<!-- site -->"  # where a site links to its other pages
ALL_CLAIMS = "<!-- all claims -->"  # where a site links to the claims of all pages
CONTENTS = "<!-- contents -->"  # where the template wants the list of sections
PLAIN = ("n", "p", "w")  # pygments' classes of code that has the colour of text
UNREAD = ("&", "{", "}", "$")  # as text of a formula: the converter did not understand its LaTeX
BAR = "<mo stretchy=.false.>&#x0007C;</mo>"
ARGUMENTS = {"mfrac": 2, "msup": 2, "msub": 2, "msubsup": 3, "mover": 2, "munder": 2, "munderover": 3, "mroot": 2}

# Draw inline figures as reproducible SVG, and suppress the kernel's message at shutdown.
IPYTHON_CONFIG = """\
c.IPKernelApp.log_level = "CRITICAL"
c.InlineBackend.figure_formats = {"svg"}
c.InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "metadata": {"Date": None}}
"""
MATPLOTLIBRC = "svg.hashsalt: ddl\n"


class NotebookError(UserError):
    """An invalid notebook or parameter; the message names the notebook."""


class CellFailure(RuntimeError):  # noqa: N818 - a result of the notebook, not a mistake of the user
    """A cell raised an exception; the message names the notebook, the cell and the exception."""


def run_notebook(source: Path, page: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook and write it as one HTML file and as an executed notebook.

    Args:
        source: a py:percent file with one cell tagged `parameters`.
        page: the HTML file to write. `<name>.ipynb` is written in the same folder or, if a cell fails,
            `<name>.failed.ipynb` instead of both.
        parameters: JSON values for names assigned in the parameters cell.

    Raises:
        NotebookError: the file or its parameters cell is missing, a parameter is unknown, a formula cannot be read,
            or the page would load a remote resource.
        CellFailure: a cell raised an exception (its traceback is printed to stderr), or the kernel died.
    """
    notebook = read_notebook(source, parameters)
    failed, kept = page.with_suffix(".failed.ipynb"), page.with_suffix(".ipynb")
    for earlier in (page, kept, failed):  # a page from an earlier run would be misleading next to a failed one
        earlier.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="ddl-") as folder:
        executed = Path(folder) / "executed.ipynb"
        try:
            done = _execute(notebook, executed, parameters)
        except PapermillExecutionError as error:
            write_text(failed, executed.read_text(encoding="utf-8"))
            traceback = strip_ansi("\n".join(error.traceback))
            print(traceback, file=sys.stderr)
            raise CellFailure(_describe_failure(error, traceback, source, failed)) from None
        except DeadKernelError as error:
            raise CellFailure(f"{source}: the kernel died, possibly because memory ran out: {error}") from None
    tidy(done)
    write_text(kept, nbformat.writes(done) + "\n")
    write_text(page, render(done, source))


def tidy(notebook: NotebookNode) -> None:
    """Remove what differs between two runs of the same notebook, and parameters that are the notebook's own.

    Times and random identifiers of cells differ; printed text is split at points that depend on timing.
    """
    _tidy_parameters(notebook)
    CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})
    notebook.metadata.pop("papermill", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)


def read_notebook(source: Path, parameters: dict[str, Any]) -> NotebookNode:
    """Read a py:percent file, and check the parameters against its cell tagged `parameters`."""
    if not source.is_file():
        raise NotebookError(f"{source}: notebook not found")
    if source.suffix != ".py":
        raise NotebookError(f"{source}: expected a notebook in the py:percent format, named *.py")
    notebook = jupytext.read(source, fmt="py:percent")
    tagged = [cell for cell in notebook.cells if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise NotebookError(f'{source}: expected one cell `# %% tags=["{PARAMETERS_TAG}"]`, found {len(tagged)}')
    known = [
        target.id
        for statement in ast.parse(tagged[0].source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]
    for name in parameters:
        if name not in known:
            raise NotebookError(f"{source}: unknown parameter {name!r}, expected one of {', '.join(known)}")
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def _execute(notebook: NotebookNode, executed: Path, parameters: dict[str, Any]) -> NotebookNode:
    """Run all cells and save them to the file `executed`, even if one fails."""
    return papermill.execute_notebook(
        notebook,
        executed,
        parameters=parameters,
        kernel_name="python3",
        kernel_manager_class=_kernel_manager(executed.parent),
        cwd=ROOT,
        progress_bar=False,
    )


def _kernel_manager(folder: Path) -> type[AsyncKernelManager]:
    """A kernel manager that only starts this interpreter, with configuration and sockets in `folder`."""
    profile = folder / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text(IPYTHON_CONFIG)
    (folder / "matplotlibrc").write_text(MATPLOTLIBRC)
    environment = {
        "IPYTHONDIR": str(profile.parent),
        "MATPLOTLIBRC": str(folder / "matplotlibrc"),
        "SOURCE_DATE_EPOCH": "0",  # otherwise saved figures contain a date
        "PYTHONHASHSEED": "0",  # fixes sympy's order of terms
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences a debugger's warning in the log
    }
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=command, display_name="Python 3", language="python", env=environment)

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return spec

    class Manager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_interpreter(self) -> KernelSpecManager:
            return ThisInterpreter(parent=self)

        # Use sockets in the private folder, because TCP ports of notebooks started together can collide.
        @default("transport")
        def _transport(self) -> str:
            return "ipc" if os.name == "posix" else "tcp"

        @default("ip")
        def _address(self) -> str:
            return str(folder / "kernel") if self.transport == "ipc" else "127.0.0.1"

    return Manager


def _describe_failure(error: PapermillExecutionError, traceback: str, source: Path, failed: Path) -> str:
    """One line. Code cells are numbered from 1 as in the file, without the cell that papermill adds."""
    cells = json.loads(failed.read_text(encoding="utf-8"))["cells"]
    code = [
        cell for cell in cells if cell["cell_type"] == "code" and INJECTED_TAG not in cell["metadata"].get("tags", [])
    ]
    failed_cells = (
        n for n, cell in enumerate(code, 1) if any(out["output_type"] == "error" for out in cell["outputs"])
    )
    number = next(failed_cells, error.exec_count)  # a kernel that fails by itself leaves no error in the cell
    # A bare assert has no message, so show the statement.
    statement = re.findall(r"^-+> ?\d+ +(.+)$", traceback, re.M)
    reason = (str(error.evalue).strip().splitlines() or statement or ["no message"])[-1]
    return f"{source}: code cell {number} failed: {error.ename}: {reason}; see the partly executed notebook {failed}"


def render(notebook: NotebookNode, source: Path) -> str:
    """Render an executed notebook as HTML."""
    attach_captions(notebook)
    fold(notebook, everything=source.stem in {*DRAWN, STUDY})
    numbered = sorted(path.stem for path in source.parent.glob("[0-9]*_*.py"))
    made_by, claims = provenance(), read_claims(source.stem[:2]) if source.stem in numbered else []
    resources = {
        "title": title_of(notebook) or source.stem,
        "place": f"Notebook {numbered.index(source.stem) + 1} of {len(numbered)}" if source.stem in numbered else "",
        "source": f"{source.parent.name}/{source.name}",
        "claims": _claims_here(claims),
        "made_by": made_by | {"commit": made_by["commit"] and made_by["commit"][:10]},
        "highlight_css": HtmlFormatter(style="friendly").get_style_defs(".highlight"),
        "dark_highlight_css": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    try:
        html, _ = Page(template_name="template", extra_template_basedirs=[str(TEMPLATES)]).from_notebook_node(
            notebook, resources
        )
    except NotebookError as error:
        raise NotebookError(f"{source}: {error}") from error
    if found := remote_references(html):
        raise NotebookError(f"{source}: the page would load {found[0]}, expected no remote resources")
    return with_contents(with_links_to_claims(html, claims)).strip() + "\n"


def _claims_here(claims: Sequence[Claim]) -> str:
    """The claims that a page checks as a table, each with its anchor; empty if there are none."""
    rows = [
        claim | {"Paper": f'<span id="{anchor(claim)}">{claim["Paper"]}</span>', "Label": f"`{claim['Label']}`"}
        for claim in claims
    ]
    return to_html(claims_table(rows, ("Paper", "Claim", "Label", "Outcome, and what is inexact"))) if rows else ""


def with_links_to_claims(html: str, claims: Sequence[Claim]) -> str:
    """Link the labels of claims in the code, which are messages of asserts, to the rows of these claims."""
    for claim in claims:
        label = claim["Label"]
        html = re.sub(rf'(<span class="s2">"){label}(?=[":])', rf'\1<a href="#{anchor(claim)}">{label}</a>', html)
    return html


def title_of(notebook: NotebookNode) -> str:
    """The first heading of the notebook; empty if it has none."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# (.+)$", text, re.M)
    return heading[1].strip() if heading else ""


def with_contents(html: str) -> str:
    """Give the sections of a page anchors, and list those of the first level where the page has `CONTENTS`."""
    entries: list[str] = []
    used: set[str] = set()

    def anchored(match: re.Match[str]) -> str:
        level, text = match.groups()
        words = re.sub(r"<[^>]+>|&[^;]+;", "", text).lower()
        slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "section"
        while slug in used:
            slug += "-again"
        used.add(slug)
        if level == "2":
            entries.append(f'<li><a href="#{slug}">{text}</a></li>')
        link = f'<a class="anchor" href="#{slug}" aria-label="Link to this section">#</a>'
        return f'<h{level} id="{slug}">{text}{link}</h{level}>'

    html = re.sub(r"<h([23])>(.*?)</h\1>", anchored, html, flags=re.S)
    listed = f'<nav class="contents" aria-label="On this page"><ul>{"".join(entries)}</ul></nav>' if entries else ""
    return html.replace(CONTENTS, listed, 1)


def attach_captions(notebook: NotebookNode) -> None:
    """Give each figure its caption, which is a cell of its own in the file."""
    drop_captions_of_nothing(notebook)
    kept: list[NotebookNode] = []
    for cell in notebook.cells:
        if is_caption(cell):
            kept[-1].metadata["caption"] = cell.source
        else:
            kept.append(cell)
    notebook.cells = kept


def drop_captions_of_nothing(notebook: NotebookNode) -> None:
    """Remove the captions of figures that this run did not draw."""
    before = [NotebookNode(), *notebook.cells]
    notebook.cells = [
        cell for last, cell in zip(before, notebook.cells, strict=False) if not is_caption(cell) or shows_figure(last)
    ]


def is_caption(cell: NotebookNode) -> bool:
    return CAPTION_TAG in cell.get("metadata", {}).get("tags", [])


def shows_figure(cell: NotebookNode) -> bool:
    return any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {}))


def fold(notebook: NotebookNode, everything: bool) -> None:
    """Fold cells that a reader of the text does not need: parameters, imports, or the code of a page of results.

    Folded cells that follow each other without showing anything become one.
    """
    kept: list[NotebookNode] = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            tags = cell.metadata.setdefault("tags", [])
            plumbing = {PARAMETERS_TAG, INJECTED_TAG} & set(tags) or re.match(r"(from|import) ", cell.source.lstrip())
            if (everything or plumbing) and "fold" not in tags:
                tags.append("fold")
                cell.metadata["summary"] = "Code: set-up" if plumbing else "Code"
            before = kept[-1].metadata if kept and not kept[-1].get("outputs") else {}
            same = before.get("summary") == cell.metadata.get("summary") is not None
            if same and "fold" in tags and "fold" in before["tags"]:
                cell.source = f"{kept.pop().source}\n\n{cell.source}"
        kept.append(cell)
    notebook.cells = kept


def _tidy_parameters(notebook: NotebookNode) -> None:
    """Keep only injected parameters that differ from the notebook's own parameters cell."""
    own = next(cell for cell in notebook.cells if PARAMETERS_TAG in cell.metadata.get("tags", []))
    defaults = {ast.unparse(statement) for statement in ast.parse(own.source).body}
    for cell in [cell for cell in notebook.cells if INJECTED_TAG in cell.metadata.get("tags", [])]:
        changed = [
            text for statement in ast.parse(cell.source).body if (text := ast.unparse(statement)) not in defaults
        ]
        cell.source = "\n".join(["# Set for this page", *changed])
        if not changed:
            notebook.cells.remove(cell)


def remote_references(html: str) -> list[str]:
    """URLs that a browser would fetch to show the page: in src, href (except of links), url() and @import."""
    loads = r"""<(?!a\s)[^>]*?\s(?:src|srcset|href|data|poster|action)\s*=\s*["']?\s*((?:https?:)?//[^\s"'>]+)"""
    styles = r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^\s"')]+)"""
    return re.findall(loads, html, re.I) + re.findall(styles, html, re.I)


class Page(TemplateExporter):
    """nbconvert's exporter for `notebooks/template`, with the filters that this template needs."""

    file_extension = ".html"
    output_mimetype = "text/html"

    @default("template_file")
    def _index(self) -> str:
        return "index.html.j2"

    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield "page_markdown", to_html
        yield "page_latex", _latex_output
        yield "page_svg_uri", _svg_uri
        yield "page_code", _code


class _FormulaRenderer(IPythonRenderer):
    """nbconvert's Markdown renderer, but with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return formula(body, display=False)

    def block_math(self, body: str) -> str:
        tag = re.search(r"\\tag\{([^}]*)\}", body)
        number = f'<span class="number">({tag[1]})</span>' if tag else ""
        drawing = formula(body.replace(tag[0], "") if tag else body, display=True)
        return f'<span class="equation"><span class="formula">{drawing}</span>{number}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def to_html(text: str) -> str:
    """Markdown as HTML, with formulas as MathML."""
    html = MarkdownWithMath(renderer=_FormulaRenderer(escape=False, exclude_anchor_links=True)).render(text)
    return html.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


_highlight = Highlight2HTML(pygments_lexer="ipython3")


def _code(source: str) -> str:
    """Highlighted code, without the marks of names, punctuation and blanks, which look like the text around them."""
    return re.sub(rf'<span class="(?:{"|".join(PLAIN)})">([^<]*)</span>', r"\1", _highlight(source))


def _latex_output(text: str) -> str:
    """Render a LaTeX result, e.g. from sympy, as a display formula."""
    body = text.strip().strip("$").strip().removeprefix(r"\displaystyle")
    return f"<p>{_FormulaRenderer(escape=False).block_math(body)}</p>"


def _svg_uri(svg: str) -> str:
    """Encode a figure as a data URI, which keeps its styles and identifiers out of the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def formula(latex: str, display: bool) -> str:
    """A formula as MathML, which browsers render, select, search and read aloud.

    Raises:
        NotebookError: latex2mathml does not support the LaTeX, or gives something else than it says.
    """
    latex = latex.strip()
    try:
        markup = latex2mathml.converter.convert(latex, display="block" if display else "inline")
        root = ElementTree.fromstring(markup)
    except Exception as error:  # the converter raises many types of exceptions, some without a message
        raise NotebookError(f"formula ${latex}$: {error or type(error).__name__}") from error
    for element in root.iter():
        kind, text = element.tag.rpartition("}")[2], (element.text or "").strip()
        if kind == "mi" and (text.startswith("\\") or text in UNREAD):
            raise NotebookError(f"formula ${latex}$: unknown command or stray character {text}")
        if len(element) != ARGUMENTS.get(kind, len(element)):
            raise NotebookError(
                f"formula ${latex}$: expected {ARGUMENTS[kind]} arguments in {kind}, found {len(element)}"
            )
    if latex.replace(r"\{", "").count("{") != latex.replace(r"\}", "").count("}"):
        raise NotebookError(f"formula ${latex}$: expected as many {{ as }}")
    forms = itertools.cycle(("prefix", "postfix"))  # bars come in pairs; without a form the second would be a relation
    return re.sub(BAR, lambda _: f'<mo stretchy="false" form="{next(forms)}">|</mo>', markup)
