"""Deep Delta Learning, reproduced.

After `import ddl`, before or after transformers is imported, `AutoConfig` and `AutoModelForCausalLM` of transformers
read a run directory. To register with them takes transformers and torch: four seconds and hundreds of megabytes, which
most commands here do without and which those that measure their own memory must not spend. So registration waits for
the two modules of transformers that keep the registries, and happens right after each is imported.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_REGISTRIES = {
    "transformers.models.auto.configuration_auto": "register_config",
    "transformers.models.auto.modeling_auto": "register_model",
}


def _register(registry: str) -> None:
    getattr(importlib.import_module("ddl.hf"), _REGISTRIES[registry])()


class _RegisterAfterImport:
    """An import hook for the two modules; it finds them where Python does, and leaves all others alone."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _REGISTRIES else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(name)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


for _registry in _REGISTRIES:
    if _registry in sys.modules:
        _register(_registry)
sys.meta_path.insert(0, _RegisterAfterImport)
