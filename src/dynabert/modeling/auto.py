"""Let the Auto classes of transformers load narrow models, without importing transformers before somebody needs it."""

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from dynabert.families import FAMILIES
from dynabert.modeling.classes import narrow_class, narrow_config_class

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from types import ModuleType

_WATCHED = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Make AutoConfig and the Auto model classes load narrow folders with the classes of this package.

    Safe to repeat. ``import dynabert`` arranges for it (`register_when_needed`), so few will call it themselves.
    """
    from dynabert.modeling.narrow import HEADS as AUTO_CLASSES

    transformers = importlib.import_module("transformers")
    for family in FAMILIES.values():
        config = narrow_config_class(family)
        transformers.AutoConfig.register(family.narrow_model_type, config, exist_ok=True)
        for head, auto in AUTO_CLASSES.items():
            getattr(transformers, auto).register(config, narrow_class(family, head), exist_ok=True)


def register_when_needed() -> None:
    """Arrange for `register` to be called when transformers first looks up the `model_type` of a narrow model.

    Importing our classes any earlier does not work: transformers imports its own Auto modules in the middle of
    importing its model code. Until then this costs nothing, so ``import dynabert`` stays light.
    """
    if _WATCHED in sys.modules:
        _listen(sys.modules[_WATCHED])
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _listen(module: "ModuleType") -> None:
    mapping = module.CONFIG_MAPPING
    # Not a public attribute. Where a later version lacks it, an explicit register() is needed and works.
    registered = getattr(mapping, "_extra_content", None)
    if type(registered) is dict:
        mapping._extra_content = _Registered(registered)


class _Registered(dict[str, Any]):
    """Configuration classes that were registered with transformers; ours join when one of them is asked for."""

    def __contains__(self, model_type: object) -> bool:
        if not super().__contains__(model_type) and model_type in {row.narrow_model_type for row in FAMILIES.values()}:
            register()
        return super().__contains__(model_type)


class _Watch:
    """An import hook for one module: finds it as usual, once, and has `_listen` called after its execution."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        if name != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenListen(spec.loader)  # type: ignore[assignment]
        return spec


class _ThenListen:
    """A loader that hands its module back to the ordinary loader and executes it."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> "ModuleType | None":
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        assert module.__spec__ is not None, "the import system sets it before execution"
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _listen(module)
