"""Cascades: a small size of one network answers the rows that it is sure of, a larger one the rest. Nothing is trained.

All sizes are views of one set of weights, so that a cascade needs no more memory than its sizes together. The answers
are those of one row at a time; the rows that go on are put together again, without padding that none of them needs.

Source: cascades of classifiers are old (Viola and Jones, CVPR 2001); for encoders of several sizes, trained apart, see
CascadeBERT (Li et al., Findings of EMNLP 2021). When a row is sure enough is decided as for early exit.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch

from dynabert.batches import Batch
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.exits import Exited, Rule, answered, check_rule, leaves, n_classes
from dynabert.measure import predict
from dynabert.stack import evaluating
from dynabert.subnet import Subnet, encoder_flops


class Cascade:
    """Sizes of one network, each of which is asked about the rows that those before it were not sure of.

    :param elastic: with a sequence classification head; its views are in eval mode while they run.
    :param sizes: two or more, each of more FLOPs than the one before; Subnets or their names.
    :param rule: a name in `dynabert.exits.RULES`.
    :raises SettingError: fewer than two sizes, sizes that do not grow, an unknown rule, or a regression.
    """

    def __init__(self, elastic: ElasticModel, sizes: Sequence[Subnet | str], *, rule: Rule = "normalised") -> None:
        check_rule(rule)
        self.n_classes = n_classes(elastic.model.config)
        self.elastic, self.rule = elastic, rule
        self.sizes = tuple(size if isinstance(size, Subnet) else Subnet.parse(size) for size in sizes)
        slices = [elastic.slices(size) for size in self.sizes]
        self.flops = np.cumsum([encoder_flops(elastic.shape, one) for one in slices])
        """Shape (sizes,): of a row of 128 tokens by the size that answers it, those before it included."""
        self.n_layers = np.cumsum([len(one) for one in slices])
        """Shape (sizes,): layers that such a row executes."""
        grows = all(small < large for small, large in pairwise(np.diff(self.flops, prepend=0)))
        if len(self.sizes) < 2 or not grows:
            raise SettingError(
                f"{self.name or 'nothing'} is no cascade; give two or more sizes, each of more FLOPs than the last"
            )

    @property
    def name(self) -> str:
        """The names of its sizes, joined by ``+``."""
        return "+".join(size.name for size in self.sizes)

    def predict(self, batches: Iterable[Batch], threshold: float) -> Exited:
        """The answer of each row by the first size that is sure enough, the last one being sure of all.

        :param batches: each row once.
        :param threshold: of the rule; higher is faster.
        :return: layers are those of all sizes that a row went through.
        :raises DataError: no rows.
        """
        views = [self.elastic.at(size) for size in self.sizes]
        with evaluating(*views), torch.inference_mode():
            return answered(lambda batch: self._answer(batch, threshold), batches, device=self.elastic.model.device)

    def _answer(self, batch: Batch, threshold: float) -> Exited:
        logits = np.zeros((len(batch), self.n_classes), np.float32)
        stage = np.full(len(batch), len(self.sizes) - 1)
        rows = np.arange(len(batch))  # that no size was sure of so far
        for number, size in enumerate(self.sizes):
            answers = self.elastic.at(size)(**batch.inputs).logits.float().cpu().numpy()
            sure = np.ones(len(rows), bool)
            if number < len(self.sizes) - 1:
                sure = leaves(answers, threshold, self.rule)
            logits[rows[sure]], stage[rows[sure]] = answers[sure], number
            rows = rows[~sure]
            if not len(rows):
                break
            if sure.any():
                batch = batch.rows(torch.from_numpy(np.flatnonzero(~sure)))
        return Exited(logits, self.n_layers[stage])

    def all_exits(self, batches: Iterable[Batch]) -> np.ndarray:
        """The logits of every size for every row, for `dynabert.exits.exits_at` and what chooses thresholds.

        :param batches: each row once; they are gone through once for each size.
        :return: float32, shape (sizes, rows, n_labels), rows in the order of ascending ids.
        :raises DataError: no rows.
        """
        return np.stack([predict(self.elastic.at(size), batches) for size in self.sizes])
