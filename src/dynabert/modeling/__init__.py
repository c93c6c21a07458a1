"""The saved form of an extracted model: stock where stock classes can hold it, else a narrow class of this package.

The files `configuration_dynabert_*`, `modeling_dynabert_*` and `narrow` are copied next to the weights by
`save_pretrained`. Nothing here imports torch or transformers before a class is asked for.
"""

from dynabert.modeling.auto import register, register_when_needed
from dynabert.modeling.classes import (
    HEADS,
    LOADERS,
    auto_class,
    filled,
    head_of,
    is_stock,
    loads_with,
    narrow_class,
    narrow_config_class,
    quietly,
    small_class,
    small_config,
    small_model,
    stock_class,
    stock_config_class,
)

__all__ = [
    "HEADS",
    "LOADERS",
    "auto_class",
    "filled",
    "head_of",
    "is_stock",
    "loads_with",
    "narrow_class",
    "narrow_config_class",
    "quietly",
    "register",
    "register_when_needed",
    "small_class",
    "small_config",
    "small_model",
    "stock_class",
    "stock_config_class",
]
