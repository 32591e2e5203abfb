"""Notebooks as Markdown for code hosts."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ddl.reporting.notebook_markdown import plain_table, write_markdown

SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
TABLE = """<div>
<style scoped>
    .dataframe tbody tr th { vertical-align: top; }
</style>
<table border="1" class="dataframe">

  <tr style="text-align: right;"><th>loss</th></tr>
</table>
</div>"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two notebooks as Markdown."""
    outputs = [
        new_output("stream", text="printed\n"),
        new_output("display_data", {"image/svg+xml": SVG, "text/plain": "<Figure>"}),
        new_output("display_data", {"text/html": TABLE, "text/plain": "loss"}),
        new_output("display_data", {"text/latex": "$x^2$", "text/plain": "x**2"}),
    ]
    cells = [
        new_markdown_cell("See [notebook\n02](02_second.html)."),
        new_code_cell("import math", metadata={"tags": ["parameters"]}),
        new_code_cell("draw()", outputs=outputs, metadata={"alt": "A line"}),
        new_markdown_cell("The line.", metadata={"tags": ["caption"]}),
    ]
    files = {}
    for name, title in (("01_first", "# First"), ("02_second", "# What is $x_1$?")):
        files[name] = tmp_path / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=[new_markdown_cell(title), *cells]), files[name])
    write_markdown(files, tmp_path / "out")
    return tmp_path / "out"


def test_figures_are_files_that_the_text_shows_with_their_alternative_text(written: Path) -> None:
    text = (written / "02_second.md").read_text()
    alternative, file = re.findall(r"!\[(.*?)\]\((.*?)\)", text)[0]
    assert alternative == "A line"
    assert (written / file).read_text() == SVG
    assert "\n\nThe line.\n" in text  # the caption


def test_folded_code_opens_and_shown_code_is_python(written: Path) -> None:
    text = (written / "02_second.md").read_text()
    assert "<details><summary>Code: set-up</summary>\n\n```python\nimport math\n```\n\n</details>" in text
    assert "\n\n```python\ndraw()\n```\n" in text
    assert "```text\nprinted\n```" in text
    assert "$x^2$" in text


def test_pages_are_linked_in_the_order_of_reading(written: Path) -> None:
    assert (
        (written / "01_first.md")
        .read_text()
        .startswith("[Contents](README.md) · [What is $x_1$? →](02_second.md)\n\n# First")
    )
    assert "See [notebook\n02](02_second.md)." in (written / "01_first.md").read_text()
    assert "[← First](01_first.md)" in (written / "02_second.md").read_text()
    assert "- [First](01_first.md)\n- [What is $x_1$?](02_second.md)\n" in (written / "README.md").read_text()


def test_a_table_keeps_its_cells_and_no_style(written: Path) -> None:
    assert plain_table(TABLE) == "<div>\n<table>\n<tr><th>loss</th></tr>\n</table>\n</div>"
    assert "<style" not in (written / "02_second.md").read_text()
