"""All figures of a report, in the order of the page."""

from collections.abc import Iterator

from dynabert.report import tables
from dynabert.report.data import Contents
from dynabert.report.differences import ablation_figure, gap_figure
from dynabert.report.exits import exit_figure
from dynabert.report.figure import Figure
from dynabert.report.insides import (
    attention_figure,
    coverage_figure,
    curve_figure,
    head_figure,
    neuron_figure,
    pattern_figure,
    score_figure,
)
from dynabert.report.network import TEACHER
from dynabert.report.searches import search_figure
from dynabert.report.sizes import deployed_figure, front_figure, grid_figure, pair_figure


def figures_of(contents: Contents) -> tuple[Figure, ...]:
    """The figures for which there are data, in the order of the page."""
    return tuple(figure for figure in _figures(contents) if figure is not None)


def _figures(contents: Contents) -> Iterator[Figure | None]:
    predictions, attention = contents.network
    studies = contents.studies
    if contents.own is not None:
        yield front_figure(contents.sweeps, studies.compared)
        if studies.compared is not None:
            yield gap_figure(studies.compared, tuple(contents.sweeps))
        yield exit_figure(studies.exits, studies.cascades)
        yield grid_figure(contents.own)
        yield search_figure(studies.searches)
    if contents.deployed:
        yield deployed_figure(contents.deployed)
    if contents.own is not None and predictions is not None:
        names = [TEACHER, *(row.subnet for row in sorted(contents.own.rows, key=lambda row: -row.cost.flops))]
        logits = {name: predictions.logits[name] for name in names}
        yield pair_figure(tables.pairs(predictions.labels, logits))
    if studies.ablated is not None:
        yield ablation_figure(studies.ablated)
    yield curve_figure(contents.metrics)
    yield score_figure(contents.metrics)
    if contents.importance is not None:
        yield head_figure(contents.importance.heads.double().numpy())
        yield neuron_figure(contents.importance.neurons.double().numpy())
    if studies.coverage is not None:
        yield coverage_figure(studies.coverage)
        yield pattern_figure(studies.coverage)
    if attention is not None:
        yield attention_figure(attention)
