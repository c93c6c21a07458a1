"""The files of a model folder that somebody else may have written: found, measured and read, never executed.

Only names that we know are opened, only plain files that lie inside the folder, and only up to a size that such a file
can honestly have. Weights are safetensors, everything else is JSON or text.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynabert.errors import ModelFileError
from dynabert.files import read_json
from dynabert.folders import CARD

MIB = 2**20
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ELASTIC = "elastic.json"
EXPORT_FILE = "export.json"
"""Lies in a folder of files for an engine, see `dynabert.exported`."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)

_JSON_LIMIT = MIB
_HEADER_LIMIT = 10 * MIB
_WANTED = (CONFIG, WEIGHTS, WEIGHTS_INDEX, "model-*.safetensors", ELASTIC, CARD, TOKENIZER_CONFIG, *TOKENIZER_FILES)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def resolve(source: str | Path) -> Path:
    """The folder of a model, fetched from the Hugging Face hub where the name is not a folder here.

    Of a hub repository only card, configuration, safetensors and tokenizer files are fetched, into the hub's own cache.

    :param source: a folder, or the name of a hub repository such as ``google-bert/bert-base-uncased``.
    :raises ModelFileError: neither a folder here nor a repository that could be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelFileError(f"{source} is a file; give the folder that holds the model")
    if not HUB_ID.fullmatch(str(source)) or ".." in str(source):
        raise ModelFileError(f"{source} is neither a folder nor the name of a hub repository; check the path")
    return fetched(str(source), _WANTED)


def hub_name(source: str | Path) -> str | None:
    """The name of a hub repository, or None where `resolve` would take the source for a folder."""
    is_name = HUB_ID.fullmatch(str(source)) is not None and ".." not in str(source)
    return str(source) if is_name and not Path(source).expanduser().exists() else None


def located(source: str | Path) -> str:
    """The name of a hub repository, or the absolute path of a folder: the same model from any folder."""
    return hub_name(source) or str(Path(source).expanduser().absolute())


def fetched(repository: str, patterns: Sequence[str]) -> Path:
    """The files of a hub repository that patterns name, in the hub's own cache.

    :raises ModelFileError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # the client raises its own, its HTTP library's and the operating system's errors
        raise ModelFileError(
            f"{repository} is not a folder here, and the hub did not give it ({one_line(error)}); check the name, "
            f"or go online, or download it to a folder"
        ) from error


def find_file(folder: Path, name: str, *, limit: int | None = None) -> Path | None:
    """A plain file that lies in a folder, or None where there is none of that name.

    :param folder: a model folder, or a snapshot in the hub's cache, whose links lead to the cache's blobs.
    :param name: the file's name.
    :param limit: the most bytes such a file may have.
    :raises ModelFileError: it leads out of the folder, is not a plain file, or is too large.
    """
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in _roots(folder.resolve())):
        raise ModelFileError(f"{path} is a link that leads out of its folder; put the file itself there")
    if not real.is_file():
        raise ModelFileError(f"{path} is not a plain file; put the file itself there")
    if limit is not None and real.stat().st_size > limit:
        raise ModelFileError(f"{path} has {real.stat().st_size:,} bytes, more than the {limit:,} that are read")
    return path


def _roots(folder: Path) -> list[Path]:
    for snapshot in (folder, *folder.parents):  # a folder of a snapshot has its links too
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            return [folder, repository / "blobs", repository.parent / "blobs"]
    return [folder]


def read_object(folder: Path, name: str, *, limit: int = _JSON_LIMIT) -> dict[str, Any] | None:
    """A JSON file of a model folder that holds an object, or None where there is none of that name.

    :raises ModelFileError: the file cannot be used, see `find_file`, or holds anything else.
    """
    path = find_file(folder, name, limit=limit)
    if path is None:
        return None
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ModelFileError(f"{path} holds a {type(fields).__name__}, not an object; use another copy of the folder")
    return fields


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or the shards that its index names.

    :raises ModelFileError: there are none, only unsafe formats, or an index that leads out of the folder.
    """
    single = find_file(folder, WEIGHTS)
    files = [single] if single is not None else [_shard(folder, name) for name in _shard_names(folder)]
    for path in files:
        _check_header(path)
    return files


def _shard_names(folder: Path) -> list[str]:
    index = read_object(folder, WEIGHTS_INDEX, limit=_HEADER_LIMIT)
    if index is None:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise ModelFileError(
                f"{folder} holds its weights as {pickles[0]}, a format that can run code when read; if you trust it, "
                f"load it with transformers and save it with save_pretrained, which writes {WEIGHTS}"
            )
        raise ModelFileError(f"{folder} has no {WEIGHTS}; give the folder of a model saved as safetensors")
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelFileError(f"{folder / WEIGHTS_INDEX} has no map of file names; use another copy of the folder")
    return sorted(set(names.values()))


def _shard(folder: Path, name: str) -> Path:
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ModelFileError(f"{folder / WEIGHTS_INDEX} names {name!r:.80}, which is not a safetensors file beside it")
    path = find_file(folder, name)
    if path is None:
        raise ModelFileError(f"{folder} lacks {name!r:.80}, which its index names; use another copy of the folder")
    return path


def _check_header(path: Path) -> None:
    """Refuse a header that is larger than any honest one before a parser sees it."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {one_line(error)}") from error
    if size > min(_HEADER_LIMIT, path.stat().st_size - 8):
        raise ModelFileError(f"{path} is truncated or not a safetensors file; use another copy of it")


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an exception of another library says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
