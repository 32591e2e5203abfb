"""The documentation pages: their links, paths, commands and imports exist."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from ddl.cli import commands
from ddl.layout import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
HISTORY = "CHANGELOG.md"  # also names things that no longer exist
MADE_BY_THE_READER = {"config/scales/mine.yaml"}
PATH = re.compile(
    r"(?<![\w/.<-])((?:ddl|tests|config|docs|notebooks|paper|profiles|benchmarks|results/reference)/(?:[\w./-]*[\w/])?)"
)


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub derives them from its headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files_and_headings_that_exist(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", sorted(TEXTS.keys() - {HISTORY}))
def test_paths_in_the_text_exist(page):
    paths = set(PATH.findall(TEXTS[page])) - MADE_BY_THE_READER
    paths |= {f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m (benchmarks\.\w+)", TEXTS[page])}
    # A rendered notebook is a result, so check its source instead.
    sources = {re.sub(r"^(notebooks/.*)\.html$", r"\1.py", path) for path in paths}
    assert sorted(path for path in sources if not (ROOT / path).exists()) == []


def command_lines(text: str) -> list[list[str]]:
    """The arguments of every `ddl` command in shell blocks and inline code."""
    shell = [line for block in code_blocks(text, "sh") for line in block.splitlines()]
    inline = re.findall(r"`(ddl [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in shell + inline]
    return [words[1:] for words in lines if words[:1] == ["ddl"]]


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_their_options_exist(page):
    for words in command_lines(TEXTS[page]):
        command, context = commands, click.Context(commands)
        rest = list(words)
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            assert name in command.list_commands(context), f"ddl {' '.join(words)}: no command {name}"
            command = command.get_command(context, name)
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        if not command.context_settings.get("ignore_unknown_options"):  # else the command forwards unknown options
            unknown = {word for word in rest if word.startswith("--")} - known
            assert unknown == set(), f"ddl {' '.join(words)}"


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if code_blocks(text, "python")])
def test_imports_from_the_package_in_examples_work(page):
    for block in code_blocks(TEXTS[page], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                names = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            for module, name in names:
                if module.split(".")[0] == "ddl":
                    assert name is None or hasattr(importlib.import_module(module), name), f"{module}.{name}"
                    assert importlib.util.find_spec(module), module


def found(name: str) -> bool:
    """Whether a dotted name is a module or stands in one."""
    try:
        if importlib.util.find_spec(name):
            return True
    except ModuleNotFoundError:
        pass
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", sorted(TEXTS.keys() - {HISTORY}))
def test_names_of_the_package_in_the_text_exist(page):
    names = set(re.findall(r"`(?:import )?(ddl(?:\.\w+)+)`", TEXTS[page]))
    assert sorted(name for name in names if not found(name)) == []
