"""What the commands share: options that several have, and how results are printed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynabert.errors import SettingError

if TYPE_CHECKING:
    from dynabert.subnet import Subnet
    from dynabert.sweep import LatencySettings, Sweep

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Run = Annotated[Path, typer.Argument(help="A run folder: the --out of a train command.", show_default=False)]
Runs = Annotated[list[Path], typer.Argument(help="Run folders; of several the mean over their tasks counts.")]
Seeds = Annotated[int, typer.Option(help="Seeds: that of the run and the ones after it.")]
Budget = Annotated[float, typer.Option(help="Training FLOPs of each training, as a share of the run's.")]
Limit = Annotated[int | None, typer.Option(help="Train on a random part of this many rows.")]
StudiedRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", help="default, two-stage or paper, at the run's training FLOPs; the run's own by default."
    ),
]
SubnetName = Annotated[
    str | None,
    typer.Option("--subnet", help="A size by name: w0.5-d0.75, or h1-n0.5-d0.75 for heads and neurons apart."),
]
Width = Annotated[float | None, typer.Option("--width", help="Share of the heads and neurons, in (0, 1].")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")]
Engine = Annotated[str, typer.Option(help="What runs it: torch, torch-compile, openvino or onnxruntime.")]
Dtype = Annotated[str, typer.Option(help="Of its products: fp32, bf16, int8 or int8-static, as the engine has them.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a call; by default PyTorch's number.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw it: FILE.svg or FILE.png.")]
Depth = Annotated[float | None, typer.Option("--depth", help="Share of the layers, in (0, 1].")]


def latency_of(wanted: bool) -> "LatencySettings | None":
    """The usual settings, where latency is wanted."""
    from dynabert.sweep import LatencySettings

    return LatencySettings() if wanted else None


def subnet_of(name: str | None, width: float | None, depth: float | None) -> "Subnet":
    """The size that --subnet, or --width and --depth, name."""
    from dynabert.subnet import Subnet

    if name is None and width is None and depth is None:
        raise SettingError("no size given; use --subnet w0.5-d0.75, or --width 0.5 --depth 0.75")
    if name is not None and (width is not None or depth is not None):
        raise SettingError("give --subnet, or --width and --depth, not both")
    if name is not None:
        return Subnet.parse(name)
    return Subnet(1.0 if width is None else width, 1.0 if depth is None else depth)


def sizes_of(subnets: str | None, name: str | None, width: float | None, depth: float | None) -> "tuple[Subnet, ...]":
    """The sizes that --subnets names, or the one of the other options."""
    if subnets is None:
        return (subnet_of(name, width, depth),)
    if (name, width, depth) != (None, None, None):
        raise SettingError("give --subnets, or one size, not both")
    return subnets_of(subnets)


def subnets_of(names: str) -> "tuple[Subnet, ...]":
    """The sizes of a comma-separated option."""
    from dynabert.subnet import Subnet

    return tuple(Subnet.parse(name) for name in names_of(names))


def names_of(text: str) -> tuple[str, ...]:
    """The words of a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers_of(option: str, text: str) -> tuple[float, ...]:
    """The numbers of a comma-separated option."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise SettingError(f"--{option} {text!r} is not a list of numbers; write them with commas between") from None


def counts_of(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a comma-separated option."""
    numbers = numbers_of(option, text)
    if not all(number.is_integer() for number in numbers):
        raise SettingError(f"--{option} {text!r} is not a list of whole numbers; write them with commas between")
    return tuple(int(number) for number in numbers)


def lines_of(texts: list[str]) -> Iterator[str]:
    """Texts as given, the lines of one file, or for - those of standard input."""
    if len(texts) > 1 and any(_is_file(text) for text in texts):
        raise SettingError(f"{next(filter(_is_file, texts))} is a file; give one file alone, or texts")
    if len(texts) == 1 and Path(texts[0]).suffix in (".txt", ".tsv", ".csv", ".jsonl") and not _is_file(texts[0]):
        raise SettingError(f"there is no file {texts[0]}; check its path; a text that looks like one goes to stdin")
    if len(texts) == 1 and Path(texts[0]).suffix in (".csv", ".jsonl", ".parquet") and _is_file(texts[0]):
        raise SettingError(f"{texts[0]} is a table; give its texts alone, one a line, in a .txt file or to stdin")
    if texts == ["-"]:
        yield from sys.stdin
    elif len(texts) == 1 and _is_file(texts[0]):
        with Path(texts[0]).open(encoding="utf-8") as file:
            yield from file
    else:
        yield from texts


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a text longer than any file name
        return False


def print_sweep(sweep: "Sweep", *, as_json: bool) -> None:
    """Print a table of sizes."""
    if as_json:
        print_json(sweep.to_dict())
    else:
        typer.echo(sweep.table())


def print_json(value: dict[str, Any]) -> None:
    """Print one object on one line."""
    typer.echo(json.dumps(value))
