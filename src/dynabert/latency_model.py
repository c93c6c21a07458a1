"""How long sizes take that were not measured, from those that were: one line for each kind of work, none negative.

A call costs something whatever the size (embeddings, head, calling), something for each layer (norms, sums, starting
kernels), and something for each FLOP. The three prices are fitted to the measured sizes at one batch and length, by
relative error; leaving each of them out in turn says how far to trust it. A uniform grid cannot tell more prices apart:
heads and neurons are cut alike there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynabert.errors import SettingError
from dynabert.subnet import EncoderShape, LayerSlice, Subnet, encoder_flops

if TYPE_CHECKING:
    from dynabert.description import Description
    from dynabert.sweep import Sweep

FEWEST = 4
"""Sizes that must be measured: one more than there are prices, so that leaving one out says something."""

ROUGH = 0.1
"""A median error above this is rather the noise of a busy machine than what the prices leave out."""


@dataclass(frozen=True)
class LatencyModel:
    """Prices of the kinds of work at one batch and length.

    :param encoder: sizes of the full encoder.
    :param batch: sequences in a call.
    :param seq: tokens of each.
    :param prices: in milliseconds: of a call, of a layer, of a GFLOP.
    :param error: median relative error at sizes left out of the fit, 0.05 is 5 %.
    :param worst: the largest of those errors.
    """

    encoder: EncoderShape
    batch: int
    seq: int
    prices: tuple[float, ...]
    error: float
    worst: float

    @classmethod
    def fit(cls, sweep: "Sweep", sizes: "Description") -> "LatencyModel":
        """Fit to the latency that counts in a Sweep, see `dynabert.sweep.Sweep.at`.

        :param sizes: of the network that was measured, `dynabert.elastic.ElasticModel.described`.
        :raises SettingError: no latency, or too few sizes.
        """
        latency, n_rows = sweep.context.latency, len(sweep.rows)
        times = [row.cost.latency_ms for row in sweep.rows]
        if latency is None or any(time is None for time in times):
            raise SettingError("this Sweep has no latency to predict others from; measure again with it")
        if n_rows < FEWEST:
            raise SettingError(f"{n_rows} measured sizes are too few to predict others; measure {FEWEST} or more")
        batch, seq = latency.shapes[0]
        work = np.array([_work(sizes.shape, sizes.slices(Subnet.parse(row.subnet)), batch, seq) for row in sweep.rows])
        measured = np.array(times, dtype=np.float64)
        errors = []
        for left_out in range(n_rows):
            kept = np.arange(n_rows) != left_out
            predicted = work[left_out] @ _prices(work[kept], measured[kept])
            errors.append(abs(predicted / measured[left_out] - 1))
        prices = tuple(_prices(work, measured).tolist())
        return cls(sizes.shape, batch, seq, prices, float(np.median(errors)), float(max(errors)))

    def ms(self, slices: Sequence[LayerSlice]) -> float:
        """Milliseconds that a call of some slices is predicted to take."""
        return float(np.dot(_work(self.encoder, tuple(slices), self.batch, self.seq), self.prices))

    def describe(self) -> str:
        """How far to trust it, in one line."""
        noisy = "; measure on a quieter machine, or with more --repeats" if self.error > ROUGH else ""
        return (
            f"latency of other sizes at {self.batch} x {self.seq} tokens can be predicted: those measured, each left "
            f"out in turn, are off by {self.error:.1%} in the median, {self.worst:.1%} at worst{noisy}"
        )


def _work(encoder: EncoderShape, slices: tuple[LayerSlice, ...], batch: int, seq: int) -> tuple[float, ...]:
    """What a call consists of: itself, layers, GFLOPs."""
    return 1.0, float(len(slices)), batch * encoder_flops(encoder, slices, seq) / 1e9


def _prices(work: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Prices of which none is negative, least squares of the relative errors."""
    from scipy.optimize import nnls

    prices, _ = nnls(work / measured[:, None], np.ones(len(measured)))
    return np.asarray(prices)
