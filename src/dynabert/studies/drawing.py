"""Figures of studies as files: SVG, or PNG at twice the size."""

from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.errors import SettingError, one_of
from dynabert.files import atomic_write_bytes

if TYPE_CHECKING:
    import altair

FORMATS = ("svg", "png")


def check_figure(path: Path) -> str:
    """The format of a figure's file, checked before anything is computed.

    :raises SettingError: neither of `FORMATS`, no folder for it, or a package is missing.
    """
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise SettingError(one_of("format of a figure", path.suffix, [f".{name}" for name in FORMATS]))
    check_folder(path)
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise SettingError(f"figures need {error.name}; run: pip install 'dynabert[report]'") from error
    return suffix


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is not there, before anything is computed.

    :raises SettingError: there is none.
    """
    if not path.parent.is_dir():
        raise SettingError(f"there is no folder {path.parent} for {path.name}; make it first")


def save_chart(chart: "altair.TopLevelMixin", path: str | Path) -> None:
    """Draw a chart to an SVG or PNG file, whole or not at all.

    :raises SettingError: another format, or a package is missing.
    :raises StorageError: it cannot be written.
    """
    suffix = check_figure(Path(path))
    import vl_convert

    spec = chart.to_dict()
    if suffix == "svg":
        atomic_write_bytes(path, vl_convert.vegalite_to_svg(spec).encode())
    else:
        atomic_write_bytes(path, vl_convert.vegalite_to_png(spec, scale=2))
