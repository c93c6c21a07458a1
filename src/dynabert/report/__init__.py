"""What a run folder has to show: one HTML page that opens offline, and its figures as SVG and PNG."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynabert.errors import SettingError
from dynabert.files import atomic_write_bytes, atomic_write_text, storage_errors
from dynabert.job import pick_device
from dynabert.measure import Progress
from dynabert.report.data import collect
from dynabert.studies.attention import rows_of_texts

REPORT_FILE = "report.html"

log = logging.getLogger("dynabert")


@dataclass(frozen=True)
class Report:
    """What was written.

    :param page: the HTML page.
    :param n_bytes: its size.
    :param figures: names of those on it.
    :param images: files of figures.
    :param left_out: a line for each part that has no data, or whose data cannot be used.
    """

    page: Path
    n_bytes: int
    figures: tuple[str, ...]
    images: tuple[Path, ...]
    left_out: tuple[str, ...]


def report_run(
    out: str | Path,
    page: str | Path | None = None,
    *,
    images: str | Path | None = None,
    texts: Sequence[str] | None = None,
    progress: Progress | None = None,
    device: str | None = None,
) -> Report:
    """Write what a run folder has to show as one HTML page, which asks for nothing from the network.

    What takes a model to find out (predictions of every Subnet on the validation rows, attention maps of three of their
    texts, which then stand in the page) is kept in the run folder.

    :param out: the run folder; a run that has not finished shows what it has.
    :param page: the file; by default ``report.html`` in the run folder.
    :param images: a folder for the figures, as SVG and PNG.
    :param texts: to show the attention maps of, instead of validation texts: lines of one text, or of two separated by
        a tab. Their maps are not kept.
    :param progress: told how far the predictions are.
    :param device: where to compute; by default the GPU if there is one.
    :raises SettingError: a package is missing, or an unknown device.
    :raises DataError: texts that cannot be used.
    :raises ModelFileError: not a run folder.
    :raises StorageError: something cannot be written.
    """
    _check_installed()
    if device is not None:
        pick_device(device)
    if texts is not None:
        rows_of_texts(texts)  # a text that cannot be used is said before anything is computed
    from dynabert.report.figure import image
    from dynabert.report.figures import figures_of
    from dynabert.report.page import page_of

    contents = collect(out, texts=texts, progress=progress, device=device)
    for line in contents.left_out:
        log.warning("not in the report: %s", line)
    figures = figures_of(contents)
    text, path = page_of(contents, figures), Path(page or Path(out) / REPORT_FILE)
    atomic_write_text(path, text)
    written = []
    if images is not None:
        folder = Path(images)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            for name in figure.images:
                for kind in ("svg", "png"):
                    written.append(folder / f"{_file_name(name)}.{kind}")
                    atomic_write_bytes(written[-1], image(figure, name, kind))
    names = tuple(figure.name for figure in figures)
    return Report(path, len(text.encode()), names, tuple(written), contents.left_out)


def _file_name(name: str) -> str:
    """A name that the studies' files may have given, as one that stays in its folder."""
    return re.sub(r"[^\w.-]+", "-", name)


def _check_installed() -> None:
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise SettingError(f"the report needs {error.name}; run: pip install 'dynabert[report]'") from error
