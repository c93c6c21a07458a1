"""What lies in a folder that `dynabert export` wrote, and opening it. Needs the engine's package, not PyTorch."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dynabert.engines import Options, Session, engine_here
from dynabert.errors import ModelFileError, SettingError, one_of
from dynabert.files import read_json
from dynabert.folders import CARD, MANIFEST, listed_in, verify_manifest
from dynabert.measurement import Machine, Timing
from dynabert.model_files import EXPORT_FILE, fetched, hub_name
from dynabert.processor import int8_overflows

FORMAT_VERSION = 4
FULL_BITS, SAFE_BITS = 8, 7
"""Of weights in int8; products of the fewer cannot overflow on any processor."""

log = logging.getLogger("dynabert")


@dataclass(frozen=True)
class Parity:
    """How far a file is from PyTorch and fp32, on the validation rows; metrics in their own unit.

    :param max_difference: of a logit, against the same Subnet.
    :param metric: of the file.
    :param torch_metric: of the same Subnet in PyTorch.
    :param difference_low: end of the 95 % bootstrap interval of metric - torch_metric, both on the same resampled rows.
    :param difference_high: likewise.
    :param full_metric: of the full network in PyTorch.
    :param same_size: share of the rows with the class that the same Subnet says; of a regression, their correlation.
    :param agreement: likewise, with the full network.
    :param negative_flips: share of the rows that the full network has right and the file wrong; None for a regression.
    """

    n_rows: int
    max_difference: float
    metric: float
    torch_metric: float
    difference_low: float
    difference_high: float
    full_metric: float
    same_size: float
    agreement: float
    negative_flips: float | None


@dataclass(frozen=True)
class Exported:
    """One size that an engine runs, and what is known of it.

    :param file: what the engine opens, relative to the folder; ``.`` is the folder itself.
    :param version: of the engine's package.
    :param unquantised: executed layers that int8 left in fp32.
    :param n_layers: executed.
    :param n_fused: attention layers that the engine computes in one kernel; None where it does not say.
    :param file_bytes: of the size's own files; weights that several sizes share are not in it.
    :param timing: on the machine that exported it, see `Provenance`.
    """

    subnet: str
    file: str
    engine: str
    version: str
    dtype: str
    unquantised: tuple[int, ...]
    n_layers: int
    n_fused: int | None
    file_bytes: int
    timing: Timing
    parity: Parity


@dataclass(frozen=True)
class Provenance:
    """Where the files of a folder come from, and how they were run when they were checked and timed.

    :param date: ISO 8601, UTC.
    :param fingerprint: of the weights of the whole network, whatever sizes of it are exported.
    :param options: what the engine was told, in its own words; told otherwise it may compute something else.
    :param max_metric_drop: what the files were allowed to lose of the metric; None in fp32, where rounding alone is.
    :param weight_bits: of weights in int8: all 8, or 7 where sums would have overflowed, see `dynabert.processor`; None
        in other types, and where that is not known.
    """

    machine: Machine
    date: str
    fingerprint: str
    options: Options
    max_metric_drop: float | None
    weight_bits: int | None = None


@dataclass(frozen=True)
class ExportIndex:
    """What ``export.json`` holds.

    :param made: of all its sizes.
    :param labels: names of the classes, by number; empty for a regression.
    :param max_length: tokens that the model takes at most.
    :param shared_bytes: of the file of weights that all sizes share; 0 where each has its own.
    """

    sizes: tuple[Exported, ...]
    labels: dict[int, str]
    max_length: int
    made: Provenance
    shared_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        labels = {str(number): name for number, name in self.labels.items()}
        return {"format_version": FORMAT_VERSION, **asdict(self), "labels": labels}

    @classmethod
    def of(cls, folder: str | Path) -> "ExportIndex":
        """Read it from a folder.

        :raises ModelFileError: there is none, or it is damaged or of another version.
        """
        path = Path(folder) / EXPORT_FILE
        if not path.exists():
            raise ModelFileError(f"{folder} has no {EXPORT_FILE}; give the --out of a `dynabert export`")
        saved = read_json(path)
        try:
            # Since 3 a timing may have its energy, since 4 a machine its instructions, and int8 says its bits.
            if (version := saved["format_version"]) not in (2, 3, FORMAT_VERSION):
                later = version > FORMAT_VERSION
                mend = "later version; update dynabert" if later else "former version; export again"
                raise ModelFileError(f"{path} is of a {mend}")
            sizes = tuple(
                Exported(
                    **{
                        **size,
                        "unquantised": tuple(size["unquantised"]),
                        "timing": Timing(**size["timing"]),
                        "parity": Parity(**size["parity"]),
                    }
                )
                for size in saved["sizes"]
            )
            labels = {int(number): str(name) for number, name in saved["labels"].items()}
            made = Provenance(**{**saved["made"], "machine": Machine(**saved["made"]["machine"])})
            if version < FORMAT_VERSION and any(size.dtype.startswith("int8") for size in sizes):
                made = replace(made, weight_bits=FULL_BITS)
            return cls(sizes, labels, int(saved["max_length"]), made, int(saved.get("shared_bytes", 0)))
        except ModelFileError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ModelFileError(f"{path} is not what `dynabert export` writes ({error}); export again") from error

    def size(self, subnet: str | None) -> Exported:
        """One of the sizes, by name; the only one where there is one.

        :raises SettingError: an unknown name, or none where there are several.
        """
        names = [size.subnet for size in self.sizes]
        if subnet is None and len(names) > 1:
            raise SettingError(f"there are several sizes here; choose one by --subnet: {', '.join(names)}")
        if subnet is not None and subnet not in names:
            raise SettingError(one_of("size", subnet, names))
        return self.sizes[0 if subnet is None else names.index(subnet)]


def is_export(folder: str | Path) -> bool:
    """Whether a folder is one that `dynabert export` wrote."""
    return (Path(folder) / EXPORT_FILE).exists()


def fetch_export(source: str | Path) -> Path | None:
    """The folder of an export: itself, or fetched from a hub repository of that name into the hub's own cache.

    :return: None where it is no export.
    :raises ModelFileError: a repository whose export cannot be fetched whole.
    """
    if (repository := hub_name(source)) is None:
        return Path(source) if is_export(source) else None
    folder = fetched(repository, (EXPORT_FILE, MANIFEST))
    if not is_export(folder):
        return None
    return fetched(repository, (*listed_in(folder), EXPORT_FILE, MANIFEST, CARD))


def open_export(folder: str | Path, *, subnet: str | None = None, n_threads: int = 1) -> Session:
    """Make an exported size ready to run: a function from token ids to logits.

    :param folder: that `dynabert export` wrote, or a hub repository that it was pushed to, see `fetch_export`.
    :param subnet: which size, where there are several.
    :param n_threads: of a call.
    :raises ModelFileError: a damaged folder.
    :raises SettingError: an engine that is not installed.
    """
    folder = fetch_export(folder) or Path(folder)
    if has_manifest := (folder / MANIFEST).exists():
        verify_manifest(folder, alone=False)  # before it is read: what is damaged is named
    index = ExportIndex.of(folder)
    size = index.size(subnet)
    if not has_manifest:
        raise ModelFileError(f"{folder} has no {MANIFEST}; use another copy of the folder, or export again")
    if index.made.weight_bits == FULL_BITS and int8_overflows():
        log.warning("%s has int8 whose sums can overflow here: no VNNI is known of this processor; export here", folder)
    engine = engine_here(size.engine, size.dtype)
    return engine.open(folder / size.file, dtype=size.dtype, n_threads=n_threads)
