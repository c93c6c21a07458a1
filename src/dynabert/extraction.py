"""Cut one size out of an elastic folder into a folder of its own, reading no more of it than that size."""

import logging
from dataclasses import dataclass
from pathlib import Path

from dynabert.card_parts import Origin
from dynabert.cut import described
from dynabert.errors import ModelFileError, SettingError
from dynabert.folders import CARD
from dynabert.loading import load, load_tokenizer, read_shape, resolve, save_model
from dynabert.model_card import Small, elastic_card, small_card
from dynabert.model_files import CONFIG, MIB, TOKENIZER_FILES, find_file, hub_name
from dynabert.modeling import LOADERS, auto_class
from dynabert.subnet import Subnet
from dynabert.sweep import Sweep

log = logging.getLogger("dynabert")


@dataclass(frozen=True)
class Extracted:
    """A small model on disk: where it lies, its parameters, and what can load it."""

    folder: Path
    n_params: int
    loads_with: str


def extract_folder(
    source: str | Path,
    subnet: Subnet,
    out: str | Path,
    *,
    pad_heads: bool = False,
    sweep: Sweep | None = None,
    origin: Origin | None = None,
) -> Extracted:
    """Write one Subnet of an elastic folder as a small model, with its tokenizer and a model card.

    The files are those of `ElasticModel.extract` and `save_model`, to the bit, but only what the Subnet keeps is read
    and held.

    :param source: the folder, or the hub name, of an elastic model, as `ElasticModel.save_pretrained` writes it.
    :param subnet: which; those of the grid were trained, any other one works less well.
    :param out: where to.
    :param pad_heads: see `ElasticModel.extract`: stock transformers loads it, but attention keeps its cost.
    :param sweep: what was measured of the elastic model, for the card; by default what its own card says.
    :param origin: what it was made from, for the card.
    :raises SettingError: a place that holds something else than a model, or a Subnet that the encoder does not have.
    :raises ModelFileError: a source that is not an elastic model.
    :raises StorageError: disk full, no permission or an I/O error.
    """
    out = Path(out)
    folder = resolve(source)
    check_place(out, kept_by=CONFIG, outside=folder, what="the elastic model")
    family, shape, head = read_shape(folder)
    sizes = described(folder, shape)
    trained = sizes.in_grid(subnet)
    if trained is None:
        log.warning(
            "%s was not trained, so expect less of it than of its neighbours; trained were: %s",
            subnet.name,
            ", ".join(size.name for size in sizes.grid),
        )
    model = load(folder, head=None, subnet=subnet, pad_heads=pad_heads)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    auto = auto_class(head)
    small = Small(
        subnet=trained or subnet,
        slices=sizes.slices(subnet),
        shape=shape,
        n_params=n_params,
        auto_class=auto,
        trained=trained is not None,
        pad_heads=pad_heads,
        source=hub_name(source),
    )
    if sweep is None and origin is None:
        parent = _card_of(folder)
    else:
        parent = elastic_card(sizes, family, auto_class=auto, sweep=sweep, origin=origin)
    card = small_card(small, parent, sweep=sweep, origin=origin)
    has_tokenizer = any(find_file(folder, name) for name in TOKENIZER_FILES)
    tokenizer = load_tokenizer(folder) if has_tokenizer else None
    save_model(model, out, tokenizer=tokenizer, extra_files={CARD: card})
    return Extracted(out, n_params, LOADERS[small.is_stock])


def _card_of(folder: Path) -> str:
    """The card of a folder, or nothing where there is none that can be read."""
    try:
        path = find_file(folder, CARD, limit=MIB)
        return "" if path is None else path.read_text(encoding="utf-8", errors="replace")
    except (ModelFileError, OSError) as error:
        log.warning("the card of the elastic model is left out: %s", error)
        return ""


def check_place(folder: Path, *, kept_by: str, outside: Path, what: str) -> None:
    """Refuse a place for results where something else lies, or that is inside of what they are made from.

    :param kept_by: the file that a folder has which may be replaced.
    :param outside: the folder that results must not lie in.
    :param what: what `outside` is, for the message: "the run folder".
    :raises SettingError: such a place.
    """
    if folder.is_file():
        raise SettingError(f"{folder} is a file; give the name of a folder")
    if folder.resolve().is_relative_to(outside.resolve()):
        raise SettingError(f"{folder} lies inside {what} {outside}; give an --out of its own")
    if folder.exists() and any(folder.iterdir()) and not (folder / kept_by).exists():
        raise SettingError(f"{folder} is not empty and has no {kept_by}; give another --out")
