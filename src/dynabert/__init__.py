"""dynabert: train one BERT, run it at any size.

The public names, and nothing else. They are looked up when first used, so that importing the package imports neither
torch nor transformers.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dynabert.modeling.auto import register_when_needed

if TYPE_CHECKING:
    from dynabert.batches import Batches as Batches
    from dynabert.batches import encode as encode
    from dynabert.distill import Training as Training
    from dynabert.distill import distill as distill
    from dynabert.elastic import ElasticModel as ElasticModel
    from dynabert.errors import DynabertError as DynabertError
    from dynabert.export import export as export
    from dynabert.loading import load as load
    from dynabert.loading import load_tokenizer as load_tokenizer
    from dynabert.loading import save_model as save_model
    from dynabert.measure import measure as measure
    from dynabert.recipes import Recipe as Recipe
    from dynabert.recipes import Stage as Stage
    from dynabert.rewire import Importance as Importance
    from dynabert.rewire import rewire as rewire
    from dynabert.rewire import score as score
    from dynabert.run import train as train
    from dynabert.subnet import EncoderShape as EncoderShape
    from dynabert.subnet import LayerSlice as LayerSlice
    from dynabert.subnet import Subnet as Subnet
    from dynabert.subnet import SubnetGrid as SubnetGrid
    from dynabert.sweep import Sweep as Sweep
    from dynabert.tasks import TASKS as TASKS

_HOMES = {
    "batches": ("Batches", "encode"),
    "distill": ("Training", "distill"),
    "elastic": ("ElasticModel",),
    "errors": ("DynabertError",),
    "export": ("export",),
    "loading": ("load", "load_tokenizer", "save_model"),
    "measure": ("measure",),
    "recipes": ("Recipe", "Stage"),
    "rewire": ("Importance", "rewire", "score"),
    "run": ("train",),
    "subnet": ("EncoderShape", "LayerSlice", "Subnet", "SubnetGrid"),
    "sweep": ("Sweep",),
    "tasks": ("TASKS",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)
__version__ = "0.1.0"

register_when_needed()


class _Package(ModuleType):
    """Some verbs live in a module of their own name; importing that module must not hide the verb."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever is public)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dynabert' has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"dynabert.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
