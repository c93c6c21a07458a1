"""The figure of an attention study: what the remaining heads reproduce, against how many there are."""

from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.errors import SettingError, one_of
from dynabert.files import atomic_write_bytes
from dynabert.studies.patterns import AttentionStudy, SubnetCoverage

if TYPE_CHECKING:
    import altair

FORMATS = ("svg", "png")

_NAMES = {
    "distilled": "distilled",
    "cut": "cut, not trained",
    "unchanged": "the same heads, unchanged",
    "random": "random heads",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#888888")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])


def check_figure(path: Path) -> str:
    """The format of a figure's file, checked before anything is computed.

    :raises SettingError: neither of `FORMATS`, or a package is missing.
    """
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise SettingError(one_of("format of a figure", path.suffix, [f".{name}" for name in FORMATS]))
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise SettingError(f"figures need {error.name}; run: pip install 'dynabert[report]'") from error
    return suffix


def save_figure(study: AttentionStudy, path: str | Path) -> None:
    """Draw a study to an SVG or PNG file, whole or not at all.

    :raises SettingError: another format, or a package is missing.
    :raises StorageError: it cannot be written.
    """
    suffix = check_figure(Path(path))
    import vl_convert

    spec = figure(study).to_dict()
    if suffix == "svg":
        atomic_write_bytes(path, vl_convert.vegalite_to_svg(spec).encode())
    else:
        atomic_write_bytes(path, vl_convert.vegalite_to_png(spec, scale=2))


def figure(study: AttentionStudy) -> "altair.HConcatChart":
    """Share of patterns covered, and mean similarity of the closest head, against the share of heads that remain.

    A point for each Subnet; a line joins those with the same layers; the diagonal is as much as there are heads.
    """
    import altair as alt

    points = [point for row in study.rows for point in _points(study, row)]
    kept = alt.X("heads:Q", title="heads that remain, %", scale=alt.Scale(domain=[0, 100]))
    names = list(_NAMES.values())
    look = {
        "color": alt.Color("source:N", title=None, scale=alt.Scale(domain=names, range=list(_COLOURS))),
        "shape": alt.Shape("source:N", title=None, scale=alt.Scale(domain=names)),
    }
    parts = []
    for measure, title in (
        ("covered", f"patterns covered, % (similarity ≥ {study.threshold:g})"),
        ("similarity", "similarity of the closest head, %"),
    ):
        base = alt.Chart(alt.Data(values=[point for point in points if point["measure"] == measure])).encode(x=kept)
        value = alt.Y("value:Q", title=title, scale=alt.Scale(domain=[0, 100]))
        lines = base.mark_line(opacity=0.5).encode(y=value, color=look["color"], detail="layers:N")
        bars = base.mark_rule(opacity=0.6).encode(y=alt.Y("low:Q", title=title), y2="high:Q", color=look["color"])
        marks = base.mark_point(filled=True, size=45).encode(y=value, **look)
        layers = [lines, bars, marks]
        if measure == "covered":
            ends = alt.Data(values=[{"heads": 0, "value": 0}, {"heads": 100, "value": 100}])
            diagonal = alt.Chart(ends).mark_line(color="#bbbbbb", strokeDash=[3, 3]).encode(x=kept, y=value)
            layers.insert(0, diagonal)
        parts.append(alt.layer(*layers).properties(width=320, height=300))
    return alt.hconcat(*parts)


def _points(study: AttentionStudy, row: SubnetCoverage) -> list[dict[str, str | float | None]]:
    """The points of a Subnet, in %."""
    return [
        {
            "measure": measure,
            "source": name,
            "subnet": row.subnet,
            "layers": row.n_layers,
            "heads": 100 * row.n_heads / study.n_patterns,
            **{end: None if value is None else 100 * value for end, value in estimate._asdict().items()},
        }
        for source, name in _NAMES.items()
        for measure, estimate in (
            ("covered", row.scores[source].covered),
            ("similarity", row.scores[source].similarity),
        )
    ]
