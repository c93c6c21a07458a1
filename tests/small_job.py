"""A job small enough for the suite: a few sentences, a word-level tokenizer and a tiny BERT, as files."""

import csv
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers import tiny_model
from small_rows import masked_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.loading import save_model
from dynabert.plan import Batching, Plan, Source
from dynabert.recipes import RECIPES, TEACHER
from dynabert.run import train
from dynabert.subnet import SubnetGrid

GOOD, BAD = ("warm", "witty", "moving", "bright"), ("flat", "dull", "hollow", "stale")
THINGS = ("film", "plot", "cast", "score", "scene", "ending")
SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")


def write_rows(path: Path, n_rows: int, seed: int) -> None:
    """A csv file with columns text and label: what is said of a thing, good or bad."""
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for number in range(n_rows):
            good = number % 2 == 0
            words = [rng.choice(THINGS), "is", rng.choice(GOOD if good else BAD), "number", str(number % 9)]
            rng.shuffle(words)
            writer.writerow((" ".join(words), "good" if good else "bad"))


def write_encoder(
    folder: Path, *, seed: int = 0, dropout: float = 0.1, n_layers: int = 2, masked: bool = False, **sizes: int
) -> None:
    """A tiny BERT of 4 heads without a task head, with one over the vocabulary if asked for, and its tokenizer."""
    words = [*SPECIAL, *GOOD, *BAD, *THINGS, "is", "number", *map(str, range(9)), "[MASK]"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "pad", "sep", "unk", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    model = tiny_model("bert", seed=seed, n_layers=n_layers, dropout=dropout, **sizes)
    save_model(masked_model(ElasticModel(model)) if masked else model.base_model, folder, tokenizer=fast)


def write_job(folder: Path, *, n_layers: int = 2, masked: bool = False) -> tuple[Path, Source]:
    """All files of a job: the encoder's folder and where the rows are."""
    write_rows(folder / "train.csv", 240, seed=1)
    write_rows(folder / "dev.csv", 40, seed=2)
    write_encoder(folder / "encoder", n_layers=n_layers, masked=masked)
    source = Source(train=folder / "train.csv", validation=folder / "dev.csv", text="text", label="label")
    return folder / "encoder", source


def write_run(folder: Path) -> Path:
    """A finished run of the job, without latency."""
    encoder, source = write_job(folder)
    train(encoder, source, folder / "run", plan=small_plan(), latency=None)
    return folder / "run"


def small_plan(**training: Any) -> Plan:
    """One epoch of everything over a grid of four."""
    return Plan(
        recipe=RECIPES["two-stage"].adjusted(epochs=1, lr=2e-3),
        grid=SubnetGrid((1, 0.5), (1, 0.5)),
        teacher=replace(TEACHER, epochs=8, lr=2e-3),
        training=Training(**{"precision": "fp32", "log_every": 1, **training}),
        batching=Batching(16, max_length=32),
    )
