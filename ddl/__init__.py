"""Deep Delta Learning, reproduced.

After `import ddl`, before or after transformers is imported, `AutoConfig` and `AutoModelForCausalLM` of transformers
read a run directory, and lm-evaluation-harness knows the model "ddl". To register with them takes their import: four
seconds and hundreds of megabytes, which most commands here do without and which those that measure their own memory
must not spend. So each registration waits for the module that keeps the registry.

The harness has no place where an installed package could announce itself, and its command line does not import ddl.
PyTorch has one, for its device backends: it calls `announce` when it is imported (pyproject.toml), which happens in the
harness before it looks for a model. TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches that off.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# The module that keeps a registry -> the function that registers there.
_WAITING = {
    "transformers.models.auto.configuration_auto": "ddl.hf:register_config",
    "transformers.models.auto.modeling_auto": "ddl.hf:register_model",
    "lm_eval.models": "ddl:_register_with_harness",
}
# And modules that may import one while their own import is under way: what needs them has to wait for its end.
_WATCHED = {*_WAITING, "transformers.modeling_utils", "transformers.generation.utils", "ddl.hf"}


def announce() -> None:
    """Nothing: to be called it has to be imported, and that is all it takes."""


def _register_with_harness() -> None:
    registry = importlib.import_module("lm_eval.api.registry").model_registry
    registry.register("ddl", target="ddl.adapter:DDL")  # imported when it is asked for


def _register_loaded(finished: str = "") -> None:
    """Register wherever that is possible now; called whenever the import of a watched module is `finished`."""
    unfinished = (sys.modules[name].__spec__ for name in _WATCHED - {finished} if name in sys.modules)
    if any(getattr(spec, "_initializing", False) for spec in unfinished):
        return  # its own end comes here again
    while ready := [name for name in _WAITING if name in sys.modules]:
        module, function = _WAITING.pop(ready[0]).split(":")
        getattr(importlib.import_module(module), function)()


class _RegisterAfterImport:
    """An import hook for the watched modules; it finds them where Python does, and leaves all others alone."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _WATCHED else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register_loaded(name)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


_register_loaded()
sys.meta_path.insert(0, _RegisterAfterImport)
