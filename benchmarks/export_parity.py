"""How far every exported form is from PyTorch over a whole validation split: the part `parity` of export.py."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from common import data_folder, usable_forms
from transformers import RobertaConfig, RobertaForSequenceClassification

from dynabert.batches import Batch, Batches, Encoded, encode
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError
from dynabert.export import Checks, ExportSettings, export, export_sharing
from dynabert.exported import Parity
from dynabert.job import EVALUATION_BATCH
from dynabert.loading import load_tokenizer
from dynabert.measure import predict
from dynabert.measurement import ENGINE_DTYPES
from dynabert.results import load_result
from dynabert.saved import Saved
from dynabert.subnet import Subnet
from dynabert.tasks import Task

FULL, SMALL = Subnet(), Subnet(0.25, 0.5)
ROBERTA_PAD_ID = 1
SPREAD = 3.0  # of the logits of random weights, about as far as those of a trained network reach
RANDOM_DROP = 0.05  # that int8 may cost random weights, whose decisions are closer than trained ones


@dataclass(frozen=True)
class Network:
    """A network whose exports are compared.

    :param rows: of the roles select and validation.
    :param pad_id: its padding token.
    :param max_metric_drop: what its files in bf16 and int8 may lose.
    :param is_random: its labels are what each size itself says, so that its metric is 1 and a flip costs something.
    """

    family: str
    elastic: ElasticModel
    task: Task
    rows: tuple[Encoded, Encoded]
    pad_id: int
    max_metric_drop: float
    is_random: bool

    def checks(self, subnet: Subnet) -> Checks:
        """The rows, with labels."""
        select, validation = (self._labelled(rows, subnet) for rows in self.rows)
        return Checks(self.task, select, validation)

    def _labelled(self, rows: Encoded, subnet: Subnet) -> tuple[Batch, ...]:
        batches = self.batches(rows)
        if not self.is_random:
            return batches
        logits = predict(self.elastic.at(subnet), batches)
        said = logits[:, 0] if self.task.is_regression else logits.argmax(axis=1)
        labels = np.empty_like(said)
        labels[np.argsort(rows.ids, kind="stable")] = said  # predictions come by ascending ids
        return self.batches(replace(rows, labels=labels))

    def batches(self, rows: Encoded) -> tuple[Batch, ...]:
        """Each row once, padded as the network is used to."""
        return tuple(Batches(rows, batch_size=EVALUATION_BATCH, seed=0, pad_id=self.pad_id, shuffle=False))


def parity(run: Path | None, *, quick: bool) -> list[dict[str, Any]]:
    """A row for every network, size, engine and type.

    :param run: a finished run; its network and rows are BERT's. RoBERTa is a small one with random weights, of which
        only closeness can be asked, on the same rows as RoBERTa is given rows: its own padding, no types of tokens.
    """
    networks = networks_of(run)
    bert = networks[0]
    every = [(engine, dtype) for engine, dtypes in ENGINE_DTYPES.items() for dtype in dtypes]
    forms, _ = usable_forms(form for form in every if form[0] != "torch-compile")  # whose files are those of torch
    rows = []
    for network in networks:
        for subnet in (SMALL,) if quick else (FULL, SMALL):
            checks = network.checks(subnet)
            rows += [_row(network, subnet, engine, dtype, checks) for engine, dtype in forms]
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        sizes = export_sharing(
            bert.elastic, tuple(bert.elastic.grid), Path(scratch) / "shared", checks=bert.checks(FULL)
        )
        total = sum(path.stat().st_size for path in (Path(scratch) / "shared").iterdir())
    worst = max(sizes, key=lambda size: size.parity.max_difference)
    start = {"network": "bert", "size": f"{len(sizes)} sizes, one file", "engine": "onnxruntime", "dtype": "fp32"}
    fused = f"{sum(size.n_fused or 0 for size in sizes)}/{sum(size.n_layers for size in sizes)}"
    rows.append({**start, **_said(worst.parity), "fused": fused, "result": "written", "MB": total / 1e6})
    return rows


def networks_of(run: Path | None) -> tuple[Network, Network]:
    """That of a run, and one with random weights."""
    data_folder()  # the rows of a run come from there
    if run is None:
        raise SystemExit("give --run RUN, a finished run folder")
    bert = _trained(run)
    return bert, _random_roberta(bert)


def _row(network: Network, subnet: Subnet, engine: str, dtype: str, checks: Checks) -> dict[str, Any]:
    start = {"network": network.family, "size": subnet.name, "engine": engine, "dtype": dtype}
    settings = ExportSettings(engine, dtype, max_metric_drop=network.max_metric_drop)
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        try:
            made = export(network.elastic, subnet, Path(scratch) / "deploy", checks=checks, settings=settings)
        except ModelFileError as error:
            return {**start, **_said(None), "fused": "", "result": f"refused: {error}", "MB": ""}
    fused = "" if made.n_fused is None else f"{made.n_fused}/{made.n_layers}"
    return {**start, **_said(made.parity), "fused": fused, "result": "written", "MB": made.file_bytes / 1e6}


def _said(parity: Parity | None) -> dict[str, Any]:
    """The columns of a comparison, empty where there is none."""
    names = ("max difference", "metric", "torch", "95 % low", "95 % high", "same as torch", "as full", "flips")
    if parity is None:
        return dict.fromkeys(names, "")
    points = (parity.metric, parity.torch_metric, parity.difference_low, parity.difference_high)
    values = (parity.max_difference, *(100 * point for point in points), parity.same_size, parity.agreement)
    return dict(zip(names, (*values, parity.negative_flips), strict=True))


def _trained(run: Path) -> Network:
    """The network of a run, and its held-out rows."""
    tokenizer, saved = load_tokenizer(run / "elastic"), Saved.of(run)
    task, roles = saved.roles()
    select, validation = (
        encode(tokenizer, rows, saved.plan.batching.max_length) for rows in (roles.select, roles.validation)
    )
    drop = ExportSettings().max_metric_drop
    return Network("bert", load_result(run), task, (select, validation), tokenizer.pad_token_id, drop, False)


def _random_roberta(like: Network) -> Network:
    """A small RoBERTa for the token ids and labels of another network, with random weights and logits that spread."""
    config = like.elastic.model.config
    torch.manual_seed(0)
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_labels")}
    heads = {"num_attention_heads": config.num_attention_heads, "intermediate_size": config.intermediate_size}
    made = RobertaConfig(
        **sizes,
        **heads,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=ROBERTA_PAD_ID,
        initializer_range=config.hidden_size**-0.5,  # the usual 0.02 leaves attention even, and hides its errors
    )
    elastic = ElasticModel(RobertaForSequenceClassification(made).eval(), like.elastic.grid)
    select, validation = (replace(encoded, type_ids=None) for encoded in like.rows)
    network = Network("roberta", elastic, like.task, (select, validation), ROBERTA_PAD_ID, RANDOM_DROP, True)
    _spread(
        cast(torch.nn.Linear, elastic.model.get_submodule("classifier.out_proj")),
        predict(elastic.at(FULL), network.batches(select)),
    )
    return network


@torch.no_grad()
def _spread(head: torch.nn.Linear, logits: np.ndarray) -> None:
    """Centre each logit, and scale all of them to reach about as far as a trained network's."""
    centre = torch.from_numpy(logits.mean(axis=0))
    scale = SPREAD / float((torch.from_numpy(logits) - centre).abs().max())
    head.weight.mul_(scale)
    head.bias.copy_((head.bias - centre) * scale)
