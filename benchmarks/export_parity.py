"""How far every exported form is from PyTorch over a whole validation split: the part `parity` of export.py."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import data_folder
from transformers import RobertaConfig, RobertaForSequenceClassification

from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError
from dynabert.export import Checks, ExportSettings, export, export_sharing
from dynabert.loading import load_tokenizer
from dynabert.measurement import ENGINE_DTYPES
from dynabert.results import Saved, load_result
from dynabert.subnet import Subnet

FULL, SMALL = Subnet(), Subnet(0.25, 0.5)


def parity(run: Path | None, *, quick: bool) -> list[dict[str, Any]]:
    """A row for every network, size, engine and type.

    :param run: a finished run; its network and rows are BERT's. RoBERTa is a small one with random weights, of which
        only closeness can be asked, on the same rows.
    """
    data_folder()  # the rows of a run come from there
    if run is None:
        raise SystemExit("parity needs --run RUN, a finished run folder")
    elastic = load_result(run)
    prepared = Saved.of(run).rows(load_tokenizer(run / "elastic"))
    checks = Checks(prepared.task, tuple(prepared.select), tuple(prepared.validation))
    rows = []
    for family, network in {"bert": elastic, "roberta": _roberta(elastic)}.items():
        for subnet in (SMALL,) if quick else (FULL, SMALL):
            for engine, dtypes in ENGINE_DTYPES.items():
                for dtype in dtypes:
                    if engine == "torch-compile" or (family == "roberta" and dtype != "fp32"):
                        continue
                    rows.append(_row(family, network, subnet, ExportSettings(engine, dtype), checks))
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        sizes = export_sharing(elastic, tuple(elastic.grid), Path(scratch) / "shared", checks=checks)
        total = sum(path.stat().st_size for path in (Path(scratch) / "shared").iterdir())
    worst = max(sizes, key=lambda size: size.parity.max_difference)
    rows.append(
        {**_said("bert", worst.parity, "12 sizes, one file of weights", "onnxruntime", "fp32"), "MB": total / 1e6}
    )
    return rows


def _row(
    family: str, network: ElasticModel, subnet: Subnet, settings: ExportSettings, checks: Checks
) -> dict[str, Any]:
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        try:
            made = export(network, subnet, Path(scratch) / "deploy", checks=checks, settings=settings)
        except ModelFileError as error:
            empty = dict.fromkeys(
                ("max difference", "metric", "torch", "same as torch", "as full", "flips", "fused"), ""
            )
            start = {"network": family, "size": subnet.name, "engine": settings.engine, "dtype": settings.dtype}
            return {**start, **empty, "result": f"refused: {error}"[:60], "MB": ""}
    fused = "" if made.n_fused is None else f"{made.n_fused}/{made.n_layers}"
    row = _said(family, made.parity, subnet.name, settings.engine, settings.dtype)
    return {**row, "fused": fused, "MB": made.file_bytes / 1e6}


def _said(family: str, parity: Any, size: str, engine: str, dtype: str) -> dict[str, Any]:  # noqa: ANN401 (a Parity)
    return {
        "network": family,
        "size": size,
        "engine": engine,
        "dtype": dtype,
        "max difference": parity.max_difference,
        "metric": 100 * parity.metric,
        "torch": 100 * parity.torch_metric,
        "same as torch": parity.same_size,
        "as full": parity.agreement,
        "flips": parity.negative_flips,
        "fused": "",
        "result": "written",
        "MB": "",
    }


def _roberta(like: ElasticModel) -> ElasticModel:
    """A small RoBERTa with random weights for the token ids and labels of another network."""
    config = like.model.config
    torch.manual_seed(0)
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_labels")}
    heads = {"num_attention_heads": config.num_attention_heads, "intermediate_size": config.intermediate_size}
    made = RobertaConfig(**sizes, **heads, max_position_embeddings=514, type_vocab_size=1)
    return ElasticModel(RobertaForSequenceClassification(made).eval())
