"""Compare the table of claims with the checks in the notebooks that carry its labels.

A check is an assert whose message is the label of a claim, optionally followed by a colon and details:

    assert torch.equal(before, after), "closed-gate-identity"
    assert error <= allowed, f"executed-equation: {name}, off by {error:.1e}"

Only asserts that run and can fail count. What is recognised as dead or vacuous is listed in `live_asserts` and
`may_fail`; a check that is merely weak is not recognised.
"""

import ast
import re
from collections.abc import Iterable, Iterator

from ddl.reporting.claims import notebooks_of

SLUG = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)+)(?:$|: )")
COLUMNS = ["Label", "Paper", "Version", "Claim", "Notebook", "Verified by", "Outcome, and what is inexact"]
VERSIONS = ("v3", "revised", "both", "ours")
NOT_TESTED = "Not tested here"

Row = dict[str, str]
ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def disagreements(rows: list[Row], notebooks: dict[str, str]) -> list[str]:
    """What is wrong with the table or with the labels; empty if they agree.

    Args:
        notebooks: number, e.g. "01" -> source.
    """
    found = []
    labels = [row["Label"] for row in rows]
    found += [f"{label}: {labels.count(label)} rows" for label in dict.fromkeys(labels) if labels.count(label) > 1]
    checked = {number: labels_of_checks(source) for number, source in notebooks.items()}
    named = {row["Label"]: notebooks_of(row) for row in rows}
    for row in rows:
        label, numbers = row["Label"], notebooks_of(row)
        if not SLUG.fullmatch(label):
            found.append(f"{label!r}: expected lower-case words joined by hyphens")
        if row["Version"] not in VERSIONS:
            found.append(f"{label}: version {row['Version']!r}, expected one of {', '.join(VERSIONS)}")
        if (not numbers) != row[COLUMNS[-1]].startswith(NOT_TESTED):
            found.append(f"{label}: a row without a notebook says {NOT_TESTED!r} and why, and no other row does")
        found += [f"{label}: no check in notebook {n}" for n in numbers if label not in checked.get(n, ())]
    for number, present in checked.items():
        unknown = [label for label in present if number not in named.get(label, ())]
        found += [f"{label}: no row that names notebook {number}" for label in unknown]
    return found


def labels_of_checks(source: str) -> list[str]:
    """The labels of the asserts that run and can fail, in order, without repetitions."""
    tree = ast.parse(source)
    bound = bound_names(tree)
    checks = (check for check in live_asserts(tree) if may_fail(check.test, bound))
    return list(dict.fromkeys(label for check in checks if (label := label_of(check))))


def label_of(check: ast.Assert) -> str | None:
    """The label with which the message of an assert starts."""
    message = check.msg.values[0] if isinstance(check.msg, ast.JoinedStr) else check.msg
    text = message.value if isinstance(message, ast.Constant) else None
    found = SLUG.match(text) if isinstance(text, str) else None
    return found[1] if found else None


def live_asserts(tree: ast.Module) -> Iterator[ast.Assert]:
    """The asserts that are reached: not after a return, in a branch that is never taken, where their failure is
    caught, or in a function that nobody calls."""
    definitions: dict[str, list[ast.stmt]] = {}
    waiting, mentioned = list(reached(tree.body)), set()
    while waiting:
        statement = waiting.pop(0)
        if isinstance(statement, DEFINITIONS):
            definitions.setdefault(statement.name, []).append(statement)
            if statement.name in mentioned:
                waiting += reached(statement.body)
            continue
        if isinstance(statement, ast.Assert):
            yield statement
        new = {name for part in parts_of(statement) for name in mentions(part)} - mentioned
        mentioned |= new
        waiting += [inner for name in new for found in definitions.get(name, ()) for inner in reached(found.body)]


def reached(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and of its loops and branches, without the bodies of definitions."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.While):
            truth = constant(statement.test)
            yield from reached(statement.body if truth is not False else [])
            yield from reached(statement.orelse if truth is not True else [])
        elif isinstance(statement, ast.For):
            yield from reached([] if constant(statement.iter) is False else statement.body)
            yield from reached(statement.orelse)
        elif isinstance(statement, ast.With):
            yield from reached(statement.body)
        elif isinstance(statement, ast.Try):
            yield from reached([*([] if statement.handlers else statement.body), *statement.orelse])
            yield from reached(statement.finalbody)
        elif isinstance(statement, ENDS):
            return


def parts_of(statement: ast.stmt) -> Iterator[ast.AST]:
    """What a statement evaluates itself, without the statements inside it."""
    return (part for part in ast.iter_child_nodes(statement) if not isinstance(part, ast.stmt | ast.ExceptHandler))


def mentions(part: ast.AST) -> set[str]:
    """Names that an expression reads, and names of attributes."""
    names = {node.id for node in ast.walk(part) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return names | {node.attr for node in ast.walk(part) if isinstance(node, ast.Attribute)}


def bound_names(tree: ast.Module) -> set[str]:
    """Names that a notebook assigns, defines, imports or takes as a parameter."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


def may_fail(test: ast.expr, bound: set[str]) -> bool:
    """Whether a condition depends on what the notebook computes: no constant, no comparison of a thing with itself."""
    if isinstance(test, ast.BoolOp):
        decide = any if isinstance(test.op, ast.And) else all
        return decide(may_fail(part, bound) for part in test.values)
    if isinstance(test, ast.Compare):
        sides = {ast.dump(side) for side in (test.left, *test.comparators)}
        return len(sides) > 1 and bool(mentions(test) & bound)
    if isinstance(test, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.JoinedStr | ast.Lambda):
        return False
    return bool(mentions(test) & bound)


def constant(node: ast.expr) -> bool | None:
    """The truth of a literal; None if it is not one."""
    try:
        return bool(ast.literal_eval(node))
    except ValueError:
        return None
