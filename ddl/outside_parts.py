"""Rules and readers that are not in this package, named `package.module:Class` in an entry of config/variants.yaml.

The class's own file counts for the identity of the runs that use it, so changing it retrains those runs and no others;
what the file imports does not count. A class is loaded only if a registered design names it: the config.json of a
stranger's run cannot name code to execute.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ddl.code_identity import digest
from ddl.setting_ranges import ConfigError


def is_outside(name: str) -> bool:
    """Whether the name of a rule or reader is that of a class outside the package."""
    return ":" in name


def outside_digest(setting: str, name: str) -> str:
    """SHA-256 of the syntax tree of the file of a class, without importing that file.

    Raises:
        ConfigError: there is no such module, or its source is not a Python file.
    """
    return digest(_file(setting, name))


def outside_class(setting: str, name: str, base: type, registered: set[str]) -> Any:
    """The class that `name` names.

    Args:
        setting: what names it, for messages: "residual" or "reader".
        base: the class that it must be a subclass of.
        registered: the names in entries of registered designs.

    Raises:
        ConfigError: no registered design names it, or there is no such module or class.
    """
    if name not in registered:
        raise ConfigError(
            f"{setting}: {name!r} is a class outside the package, which is loaded only if an entry of "
            "config/variants.yaml names it"
        )
    _file(setting, name)
    module, _, attribute = name.partition(":")
    found = getattr(import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            f"{setting}: {name!r}: expected a subclass of {base.__module__}.{base.__name__}, found {found!r}"
        )
    return found


def _file(setting: str, name: str) -> Path:
    module = name.partition(":")[0]
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # of a parent package, or not a name
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"{setting}: {name!r}: expected package.module:Class in an installed package or a folder in PYTHONPATH, "
            f"found no Python module {module!r}"
        )
    return Path(spec.origin)
