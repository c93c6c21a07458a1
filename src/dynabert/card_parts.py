"""What all cards are made of: origin, header, lists, tables, and the last line that tells an edited card from ours."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynabert.measurement import Machine

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

HERE = "this-folder"
"""Stands in the examples of a card for the folder or repository that it lies in."""

_SIGNATURE = re.compile(r"\n<!-- Written by dynabert; edit freely, then it is not replaced \(([0-9a-f]{16})\)\. -->\n")


@dataclass(frozen=True)
class Origin:
    """What a run was made from, as far as others may know it: no paths.

    :param task: its name.
    :param dataset: hub name of its rows; None where they are somebody's own.
    :param language: code of their language; None where that is not known.
    :param base_model: hub name of the encoder; None where it came from a folder.
    :param rows: how many there are of which role, and their fingerprint, in words.
    :param recipe: what was trained, and the seed, in words.
    :param max_length: tokens at which texts were cut off.
    :param machine: where it was trained; None where that is not known.
    """

    task: str
    dataset: str | None
    language: str | None
    base_model: str | None
    rows: str
    recipe: str
    max_length: int
    machine: Machine | None = None


def origin_lines(origin: Origin) -> list[str]:
    """What a model was made from."""
    return [
        f"Base model: {linked(origin.base_model) if origin.base_model else 'not on the hub'}",
        f"Task: {origin.task}; {origin.rows}",
        f"Recipe: {origin.recipe}",
        *([f"Trained on {machine_line(origin.machine)}"] if origin.machine else []),
    ]


def linked(repository: str) -> str:
    """A repository of the hub."""
    return f"[{repository}](https://huggingface.co/{repository})"


def machine_line(machine: Machine) -> str:
    """A machine in words."""
    device = "" if machine.device == "cpu" else f", {machine.device}"
    threads = f"{machine.n_threads} thread" + ("s" if machine.n_threads != 1 else "")
    versions = f"torch {machine.torch}, transformers {machine.transformers}, dynabert {machine.dynabert}"
    instructions = f" ({machine.instructions})" if machine.instructions else ""
    return f"{machine.cpu}{instructions}{device}, {threads} ({versions})"


def bullets(lines: list[str]) -> str:
    """Lines as a list."""
    return "\n".join(f"- {line}" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells under a head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def header_of(card: str) -> "ModelCardData | None":
    """What the header of a card says; None where there is no header, or none that can be read."""
    from huggingface_hub import ModelCard, ModelCardData

    if not card.startswith("---"):
        return None
    try:
        data = ModelCard(card, ignore_metadata_errors=True).data
        return data if isinstance(data, ModelCardData) else None
    except Exception:  # whatever the header of somebody else's card makes the libraries raise
        return None


def signed(data: "ModelCardData", body: list[str]) -> str:
    """Header and body, and a last line by which a card that was not edited is known."""
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"
    return f"{text}\n<!-- Written by dynabert; edit freely, then it is not replaced ({_digest(text)}). -->\n"


def is_unedited(card: str) -> bool:
    """Whether a card is as it was written here, so that nothing is lost when it is written anew."""
    match = _SIGNATURE.search(card)
    return match is not None and match.end() == len(card) and _digest(card[: match.start()]) == match[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
