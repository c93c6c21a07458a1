"""A view or model as a stack that is run layer by layer: embeddings, mask, each layer, task head.

What stock classes do in one forward, in the same order with the same modules, so that whoever needs the layers one by
one (early exits and their ramps) computes the same bits.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from dynabert.elastic import layers_of
from dynabert.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Stack:
    """The parts of a sequence classifier, to be run one after the other.

    :param view: a view or model of a known family with a sequence classification head; its modules are used as they
        are, in its own mode.
    :param family: its row of the families table.
    """

    def __init__(self, view: "PreTrainedModel", family: Family) -> None:
        self.view, self.layers = view, layers_of(view, family)

    def __len__(self) -> int:
        """Layers."""
        return len(self.layers)

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The embedding output (batch, seq, hidden) of `dynabert.batches.Batch.inputs`."""
        embeddings = cast(nn.Module, self.view.base_model.embeddings)
        return embeddings(input_ids=inputs["input_ids"], token_type_ids=inputs.get("token_type_ids"))

    def mask(self, hidden: Tensor, attention_mask: Tensor) -> Tensor | None:
        """What the layers take as their mask, in the form of the view's attention; None where nothing is masked.

        :param hidden: (batch, seq, hidden).
        :param attention_mask: (batch, seq), 1 for tokens and 0 for padding.
        """
        from transformers.masking_utils import create_bidirectional_mask

        config = self.view.config  # the base model's too
        mask = create_bidirectional_mask(config=config, inputs_embeds=hidden, attention_mask=attention_mask)
        return cast(Tensor | None, mask)

    def states(self, inputs: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The output of each layer in turn, (batch, seq, hidden)."""
        hidden = self.embed(inputs)
        mask = self.mask(hidden, inputs["attention_mask"])
        for layer in self.layers:
            hidden = layer(hidden, mask)
            yield hidden

    def head(self, hidden: Tensor) -> Tensor:
        """The logits (batch, n_labels) of the task head, of hidden states (batch, seq, hidden).

        With a pooler (BERT) the classifier reads what it makes of the first token; without (RoBERTa) it does so itself.
        """
        pooler = cast(nn.Module | None, self.view.base_model.pooler)
        classifier = cast(nn.Module, self.view.classifier)
        if pooler is None:
            return classifier(hidden)
        return classifier(cast(nn.Module, self.view.dropout)(pooler(hidden)))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """A block in which modules are in eval mode; each is then in the mode it was in."""
    were_training = [module for module in modules if module.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.train()
