"""Compile paper/main.typ with the results of one scale.

    ddl paper --results results/laptop --out results/laptop/paper.pdf

The same results give the same bytes, because neither system fonts nor the clock are used. The file conforms to PDF/UA-1
and PDF/A-2a.
"""

import json
import re
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from ddl.errors import UserError
from ddl.files import atomic
from ddl.layout import DRAWN, ROOT, drawn_files

PAPER_DIR = ROOT / "paper"
DRAWINGS = [file for names in DRAWN.values() for name in names for file in drawn_files(name)]
NEEDED = ("numbers.json", *(file for file in DRAWINGS if file.endswith((".csv", ".svg"))))


class PaperError(UserError):
    """The paper cannot be built; the message names the missing file or the line with the typst error."""


def compile_paper(results: Path, out: Path) -> None:
    """Write the PDF.

    Args:
        results: a results folder with numbers.json, tables 1 to 8 and figures 1 to 4.
        out: the PDF; replaced only if the compilation succeeds.

    Raises:
        PaperError: a file of the results is missing, or typst reports an error.
    """
    import typst

    for name in NEEDED:
        if not (results / name).is_file():
            raise PaperError(f"{results / name}: not found; the paper needs it, so build it first")
    with tempfile.TemporaryDirectory() as folder:
        root = stage(results, Path(folder))
        try:
            pdf = typst.compile(
                root / "paper" / "main.typ",
                root=root,
                format="pdf",
                sys_inputs={"results": "/results"},
                timestamp=timestamp(results),
                font_paths=typst.Fonts(include_system_fonts=False),
                pdf_standards=["ua-1", "a-2a"],
            )
        except RuntimeError as error:
            raise PaperError(f"paper/main.typ: {_one_line(error, root)}") from None
    with atomic(out) as temporary:
        temporary.write_bytes(pdf)


def stage(results: Path, root: Path) -> Path:
    """Copy the source and its inputs to one folder, because typst cannot read files outside its root."""
    shutil.copytree(PAPER_DIR, root / "paper")
    for name in NEEDED:
        target = root / "results" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results / name, target)
    return root


def timestamp(results: Path) -> int:
    """The date for the PDF in seconds since 1970: the date of the last run, or 0 if none is recorded."""
    utc = json.loads((results / "numbers.json").read_text(encoding="utf-8"))["provenance"]["utc"]
    return int(datetime.strptime(utc, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()) if utc else 0


def _one_line(error: RuntimeError, root: Path) -> str:
    """The message of typst on one line, without the path of the temporary folder."""
    text = str(getattr(error, "diagnostic", "") or error)
    return " ".join(re.sub(rf"\S*{re.escape(root.name)}/", "", text).split())
