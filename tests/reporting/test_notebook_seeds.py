"""Notebooks draw random numbers from their parameter `seed` alone, and what they state holds at other seeds."""

import ast
from collections.abc import Iterator

import jupytext
import pytest

from ddl.layout import ROOT
from ddl.reporting.render_notebook import PARAMETERS_TAG, run_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
SEEDS = range(10)
SEEDING = {"manual_seed", "seed", "default_rng", "RandomState"}
DRAWING = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}


def parameters(path) -> str:
    """Source of the cell tagged `parameters`."""
    cells = jupytext.read(path, fmt="py:percent").cells
    return next(cell.source for cell in cells if PARAMETERS_TAG in cell.metadata.get("tags", []))


def called(call: ast.Call) -> str:
    """Name of the function or method."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def uses_seed(call: ast.Call) -> bool:
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any("seed" in (getattr(node, "id", ""), getattr(node, "arg", "")) for a in arguments for node in ast.walk(a))


def calls(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Every call, with the source of the innermost function around it."""
    for node in ast.iter_child_nodes(tree):
        inner = ast.unparse(node) if isinstance(node, ast.FunctionDef) else scope
        if isinstance(node, ast.Call):
            yield inner, node
        yield from calls(node, inner)


def unseeded(source: str) -> list[str]:
    """Random draws that do not depend on `seed`, each as its source."""
    found = list(calls(ast.parse(source)))
    global_stream = any(ast.unparse(call.func) == "torch.manual_seed" and uses_seed(call) for _, call in found)
    wrong = []
    for scope, call in found:
        name, text = called(call), ast.unparse(call)
        own_stream = "generator" in [keyword.arg for keyword in call.keywords]
        if (
            (name in SEEDING and not uses_seed(call))
            or (name in DRAWING and text.startswith("torch.") and not (own_stream or global_stream))
            or (name in DRAWING and text.startswith(("np.random.", "random.")))
            # Weights that are replaced after the model is made need no seed.
            or (name == "LanguageModel" and not uses_seed(call) and "load_state_dict" not in scope)
        ):
            wrong.append(text)
    return wrong


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_draws_from_its_parameter_seed_only(path):
    source = path.read_text(encoding="utf-8")
    assert not unseeded(source)
    draws = any(called(call) in SEEDING | DRAWING for _, call in calls(ast.parse(source)))
    assert draws == ("seed = 0" in parameters(path).splitlines())


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("torch.Generator().manual_seed(1)", True),
        ("torch.Generator().manual_seed(seed + 1)", False),
        ("torch.randn(3)", True),
        ("torch.manual_seed(seed)\ntorch.randn(3)", False),
        ("torch.randn(3, generator=random)", False),
        ("np.random.default_rng(0)", True),
        ("np.random.normal(size=3)", True),
        ("LanguageModel(config)", True),
        ("LanguageModel(config, seed + 1000 * n)", False),
        ("def f():\n    model = LanguageModel(config)\n    model.load_state_dict(weights)", False),
    ],
)
def test_a_draw_that_ignores_the_seed_is_found(source, wrong):
    assert bool(unseeded(source)) == wrong


@pytest.mark.seeds
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if "seed = 0" in parameters(path)], ids=lambda p: p.stem)
def test_a_notebook_passes_at_another_seed(path, seed, tmp_path):
    run_notebook(path, tmp_path / "page.html", {"seed": seed})
