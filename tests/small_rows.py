"""Rows of a task whose answer a tiny model can learn, as batches of each role."""

import numpy as np
import torch
from helpers import PAD_ID, VOCAB
from transformers import AutoModelForMaskedLM

from dynabert.baselines.masked import Vocabulary
from dynabert.batches import Batches, Encoded

WORDS = Vocabulary(mask_id=3, special_ids=(0, 1, 2, 3), size=VOCAB)


def rows(n: int, *, seed: int, n_labels: int = 3) -> Encoded:
    """Rows of 2 to 12 tokens; the label is the first token, modulo the number of classes."""
    random = np.random.default_rng(seed)
    tokens = [random.integers(2, VOCAB, random.integers(2, 13)).astype(np.int32) for _ in range(n)]
    firsts = np.array([row[0] for row in tokens])
    labels = firsts.astype(np.int64) % n_labels if n_labels > 1 else (firsts / VOCAB).astype(np.float32)
    return Encoded(tokens, None, labels, random.permutation(n) * 3 + 7)


def batches(n: int, *, seed: int, shuffle: bool = True, n_labels: int = 3, batch_size: int = 8) -> Batches:
    return Batches(
        rows(n, seed=seed, n_labels=n_labels), batch_size=batch_size, seed=seed, pad_id=PAD_ID, shuffle=shuffle
    )


def masked_model(start):
    """The same encoder under a head over the vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForMaskedLM.from_config(start.model.config).eval()
    base = {name: t for name, t in start.model.base_model.state_dict().items() if not name.startswith("pooler")}
    model.base_model.load_state_dict(base)
    return model
