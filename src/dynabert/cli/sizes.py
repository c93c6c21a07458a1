"""The commands that use a finished run: measure, choose, cut, predict, report."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass

from dynabert.cli.options import (
    Depth,
    Device,
    Json,
    Run,
    SubnetName,
    Width,
    lines_of,
    print_json,
    print_sweep,
    subnet_of,
)


def measure(
    run: Run,
    subnet: SubnetName = None,
    width: Width = None,
    depth: Depth = None,
    batch: Annotated[int, typer.Option(help="Sequences in one timed call.")] = 1,
    seq: Annotated[int, typer.Option(help="Tokens of each; FLOPs are counted at this length too.")] = 128,
    dtype: Annotated[str, typer.Option(help="Of the timed model: fp32 or bf16.")] = "fp32",
    engine: Annotated[str, typer.Option(help="What runs the timed model: torch.")] = "torch",
    repeats: Annotated[int, typer.Option(help="Timed calls of each size, interleaved; the median counts.")] = 20,
    latency: Annotated[bool, typer.Option(help="Measure latency.")] = True,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure every size of a run on the validation rows: metric, parameters, FLOPs, agreement, latency.

    Without --subnet, --width and --depth the whole grid, and RUN/sweep.json is written anew.
    """
    from dynabert.progress import progress_bars
    from dynabert.results import measure_run
    from dynabert.sweep import LatencySettings

    chosen = None if (subnet, width, depth) == (None, None, None) else (subnet_of(subnet, width, depth),)
    settings = LatencySettings(batch, seq, repeats, dtype, engine) if latency else None
    with progress_bars() as bars:
        sweep = measure_run(run, subnets=chosen, latency=settings, progress=bars.measuring, device=device)
    print_sweep(sweep, as_json=as_json)


def pick(
    run: Run,
    max_params: Annotated[float | None, typer.Option(help="Parameters at most, for instance 12e6.")] = None,
    max_flops: Annotated[float | None, typer.Option(help="FLOPs of one sequence at most.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds at most, as the sweep measured.")] = None,
    min_metric: Annotated[float | None, typer.Option(help="Main metric at least.")] = None,
    as_json: Json = False,
) -> None:
    """Choose the best size within a budget, from the measured ones; the cheapest of equally good ones."""
    from dynabert.results import load_sweep

    row = load_sweep(run).pick(
        max_params=max_params, max_flops=max_flops, max_latency_ms=max_latency_ms, min_metric=min_metric
    )
    if as_json:
        print_json(row.to_dict())
    else:
        cost = f"{row.cost.n_params / 1e6:.2f} M parameters, {row.cost.flops / 1e9:.2f} GFLOPs"
        typer.echo(f"{row.subnet}: metric {row.metric:.4f}, {row.n_layers:.3g} of {row.of_layers} layers, {cost}")
        typer.echo(f"cut it out: dynabert extract {run} --subnet {row.subnet} --out small/")


def extract(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder of the small model; replaced if there is a model in it.")],
    subnet: SubnetName = None,
    width: Width = None,
    depth: Depth = None,
    pad_heads: Annotated[
        bool, typer.Option("--pad-heads", help="Fill the cut heads with zeros: stock format, attention keeps its cost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Cut one size out of a run: a small Hugging Face folder that works on its own."""
    from dynabert.results import extract_run

    chosen = subnet_of(subnet, width, depth)
    cut = extract_run(run, chosen, out, pad_heads=pad_heads)
    if as_json:
        print_json({"subnet": chosen.name, **asdict(cut), "folder": str(cut.folder)})
    else:
        typer.echo(f"{chosen.name}: {cut.n_params / 1e6:.2f} M parameters in {cut.folder}")
        typer.echo(f"loads with {cut.loads_with}")
        typer.echo(f'try it: dynabert predict {cut.folder} "some text"')


def predict(
    model: Annotated[str, typer.Argument(help="Model folder, for instance an extracted one.", show_default=False)],
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Texts, or one file of them; a pair is separated by a tab. - or none: stdin."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a model makes of a text, of a file, or of standard input: one text, or tab-separated pair, a line."""
    from dynabert.predict import predict_lines

    predictions = predict_lines(model, lines_of(text or ["-"]))
    if as_json:
        print_json({"predictions": [asdict(prediction) for prediction in predictions]})
        return
    for prediction in predictions:
        label = "" if prediction.label is None else f"{prediction.label}\t"
        typer.echo(f"{label}{prediction.score:.4f}\t{prediction.text}")


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="HTML file; RUN/report.html by default.", show_default=False)] = None,
    images: Annotated[Path | None, typer.Option(help="Also write every figure to this folder, as SVG and PNG.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show a run as one HTML page that opens offline: sizes, costs, training, importance, attention.

    Three short validation texts stand in it. What takes the model to find out is kept in RUN for the next report.
    """
    from dynabert.progress import progress_bars
    from dynabert.report import report_run

    with progress_bars() as bars:
        made = report_run(run, out, images=images, progress=bars.measuring, device=device)
    if as_json:
        print_json(json.loads(json.dumps(asdict(made), default=str)))
    else:
        typer.echo(f"written to {made.page}, {made.n_bytes / 1e6:.1f} MB: open it in a browser")
        if images is not None:
            typer.echo(f"{len(made.images)} images in {images}")
