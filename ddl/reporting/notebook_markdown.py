"""Write executed notebooks as Markdown with their figures, which code hosts render.

The pages of `ddl notebook` are HTML, which code hosts show as source. `ddl keep` writes these beside its other files.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.exporters import MarkdownExporter

from ddl.files import write_text
from ddl.layout import DRAWN
from ddl.reporting.render_notebook import TEMPLATES, drop_captions_of_nothing, fold, title_of

FIGURES = "figures"


def write_markdown(notebooks: Mapping[str, Path], folder: Path) -> None:
    """Write <name>.md for every executed notebook, their figures, and README.md with links to all.

    Args:
        notebooks: name -> file.ipynb, in the order of reading.
    """
    exporter = MarkdownExporter(template_name="template", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_filter("plain_table", plain_table)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    read = {name: nbformat.read(path, as_version=4) for name, path in notebooks.items()}
    titles = {name: title_of(notebook) or name for name, notebook in read.items()}
    names = list(read)
    for place, (name, notebook) in enumerate(read.items()):
        drop_captions_of_nothing(notebook)
        fold(notebook, everything=name in DRAWN)
        resources: dict[str, Any] = {"unique_key": name, "output_files_dir": FIGURES}
        body, resources = exporter.from_notebook_node(notebook, resources)
        for file, data in resources["outputs"].items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        links = [f"[← {titles[names[place - 1]]}]({names[place - 1]}.md)"] if place else []
        links.append("[Contents](README.md)")
        links += [f"[{titles[names[place + 1]]} →]({names[place + 1]}.md)"] if place + 1 < len(names) else []
        body = re.sub(r"\n{3,}", "\n\n", body).strip()
        body = re.sub(r"\]\((\d\d_\w+)\.html", r"](\1.md", body)  # pages link to pages
        write_text(folder / f"{name}.md", f"{' · '.join(links)}\n\n{body}\n")
    listed = "".join(f"- [{title}]({name}.md)\n" for name, title in titles.items())
    write_text(
        folder / "README.md", f"# Notebooks\n\nRendered from the reference run, in the order of reading.\n\n{listed}"
    )


def plain_table(html: str) -> str:
    """HTML without what code hosts remove or misread.

    They drop styles. Markdown takes an indented line for code, and a blank line for the end of the HTML.
    """
    html = re.sub(r"<style.*?</style>", "", html, flags=re.S)
    html = re.sub(r' (style|border|class)="[^"]*"', "", html)
    return "\n".join(line.strip() for line in html.splitlines() if line.strip())
