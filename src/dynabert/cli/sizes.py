"""The commands that use a finished run: measure, choose, cut, predict, report."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynabert.errors import SettingError

if TYPE_CHECKING:
    from dynabert.exported import Exported, Parity
    from dynabert.measurement import Timing
    from dynabert.subnet import Subnet
    from dynabert.sweep import LatencySettings, Sweep

from dynabert.cli.options import (
    Depth,
    Device,
    Dtype,
    Engine,
    Json,
    Run,
    SubnetName,
    Threads,
    Width,
    counts_of,
    lines_of,
    print_json,
    print_sweep,
    sizes_of,
    subnet_of,
    subnets_of,
)


def measure(
    run: Run,
    subnet: SubnetName = None,
    width: Width = None,
    depth: Depth = None,
    subnets: Annotated[str | None, typer.Option(help="Several sizes by commas.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Sequences in one timed call, 1 by default; several by commas: 1,8,32.")
    ] = None,
    seq: Annotated[
        str | None,
        typer.Option(help="Tokens of each, 128 by default; several by commas. FLOPs are at the first length."),
    ] = None,
    dtype: Dtype = "fp32",
    engine: Engine = "torch",
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Timed calls of each size, interleaved; the median counts. 20 by default.", show_default=False
        ),
    ] = None,
    threads: Threads = None,
    latency: Annotated[bool, typer.Option(help="Measure latency.")] = True,
    predict: Annotated[
        str | None,
        typer.Option(
            help="Instead of measuring: predict the latency of these sizes (by commas) from that of the grid."
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure every size of a run on the validation rows: metric, parameters, FLOPs, agreement, latency.

    With --engine and --dtype it is the deployed form that is measured, its metric, file size and memory included:
    openvino (fp32, bf16, int8), onnxruntime (fp32, int8, int8-static), torch (bf16), torch-compile (fp32, bf16). The
    usual form, torch in fp32, is measured in memory and has neither file size nor memory.
    Without --subnet, --subnets, --width and --depth the whole grid. The result goes to RUN/sweep.json (or
    RUN/sweep-ENGINE-DTYPE.json), beside other sizes that were measured in the same way: pick chooses from all of them.
    """
    from dynabert.latency_model import FEWEST
    from dynabert.progress import progress_bars
    from dynabert.results import PLAIN, latency_model_of, measure_run
    from dynabert.sweep import LatencySettings

    given = (subnets, subnet, width, depth)
    if predict is not None:
        if given != (None, None, None, None):
            raise SettingError("--predict names the sizes itself; leave --subnets, --subnet, --width and --depth out")
        shape = (_one("batch", batch), _one("seq", seq))
        _predicted(run, subnets_of(predict), _times(run, engine, dtype, shape, any_machine=False), as_json=as_json)
        return
    chosen = None if given == (None, None, None, None) else sizes_of(*given)
    if (engine, dtype) != PLAIN and (not latency or device not in (None, "cpu")):
        raise SettingError(
            f"{engine} {dtype} is measured with its latency and on the CPU; leave --no-latency and --device out"
        )
    if not latency and (of_times := _of_times(batch=batch, seq=seq, repeats=repeats, threads=threads)):
        raise SettingError(f"{of_times}: of times, which --no-latency leaves out; give one or the other")
    shapes = counts_of("batch", batch or "1"), counts_of("seq", seq or "128")
    settings = LatencySettings(*shapes, 20 if repeats is None else repeats, dtype, engine, threads) if latency else None
    with progress_bars() as bars:
        sweep = measure_run(run, subnets=chosen, latency=settings, progress=bars.measuring, device=device)
    print_sweep(sweep, as_json=as_json)
    if chosen is None and latency and not as_json and len(sweep.rows) >= FEWEST:
        typer.echo(latency_model_of(run, sweep).describe())


def _of_times(**options: object) -> str:
    """The options that are given."""
    return " and ".join(f"--{name}" for name, value in options.items() if value is not None)


def _one(option: str, text: str | None) -> int | None:
    """The number of an option that may have several; None where it is not given."""
    numbers = () if text is None else counts_of(option, text)
    if len(numbers) > 1:
        raise SettingError(f"--{option} {text!r} has several; --predict takes one")
    return numbers[0] if numbers else None


def _predicted(run: Path, sizes: "Sequence[Subnet]", sweep: "Sweep", *, as_json: bool) -> None:
    """Print the milliseconds that sizes would take."""
    from dynabert.results import latency_model_of, sizes_of_run

    model, described = latency_model_of(run, sweep), sizes_of_run(run)
    times = {size.name: model.ms(described.slices(size)) for size in sizes}
    if as_json:
        print_json({"batch": model.batch, "seq": model.seq, "error": model.error, "worst": model.worst, "ms": times})
        return
    for name, ms in times.items():
        typer.echo(f"{name}: about {ms:.2f} ms")
    typer.echo(model.describe())


def pick(
    run: Run,
    max_params: Annotated[float | None, typer.Option(help="Parameters at most, for instance 12e6.")] = None,
    max_flops: Annotated[
        float | None, typer.Option(help="FLOPs of one row at most, of the first length measured.")
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds at most, as the sweep measured.")] = None,
    min_throughput: Annotated[float | None, typer.Option(help="Sequences in a second at least.")] = None,
    max_file_mb: Annotated[float | None, typer.Option(help="Megabytes of the exported files at most.")] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="Megabytes of memory at most, on top of the engine's own.")
    ] = None,
    min_metric: Annotated[float | None, typer.Option(help="Main metric at least: 0.88, not 88.")] = None,
    must_load: Annotated[
        str | None, typer.Option(help="What must load it: transformers (stock), dynabert, onnx or openvino.")
    ] = None,
    engine: Engine = "torch",
    dtype: Dtype = "fp32",
    batch: Annotated[int | None, typer.Option(help="Batch of the latency that counts; it must be measured.")] = None,
    seq: Annotated[int | None, typer.Option(help="Its tokens; they must be measured.")] = None,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Trust latency and memory measured elsewhere or by other versions.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose the best size within a budget, from the measured ones; the cheapest of equally good ones.

    With --engine and --dtype from what `dynabert measure` found of that deployed form.
    """
    from dynabert.results import check_machine, load_sweep, without_foreign_times

    sweep = load_sweep(run, engine=engine, dtype=dtype)
    if batch is not None or seq is not None:
        sweep = sweep.at(batch=batch, seq=seq)
    if not any_machine:
        if (max_latency_ms, min_throughput, max_memory_mb) != (None, None, None):
            check_machine(sweep)
        sweep = without_foreign_times(sweep)
    row = sweep.pick(
        max_params=max_params,
        max_flops=max_flops,
        max_latency_ms=max_latency_ms,
        min_throughput=min_throughput,
        max_file_mb=max_file_mb,
        max_memory_mb=max_memory_mb,
        min_metric=min_metric,
        must_load=must_load,
    )
    if as_json:
        print_json(row.to_dict())
        return
    flops = f"{row.cost.flops / 1e9:.2f} GFLOPs at {sweep.context.seq_len} tokens"
    cost = f"{row.cost.n_params / 1e6:.2f} M parameters, {flops}"
    if row.cost.latency_ms is not None:
        cost += f", {row.cost.latency_ms:.2f} ms"
    typer.echo(f"{row.subnet}: metric {row.metric:.4f}, {row.n_layers:.3g} of {row.of_layers} layers, {cost}")
    typer.echo(_next_step(run, row.subnet, engine, dtype, latency=sweep.context.latency, must_load=must_load))


def _next_step(
    run: Path,
    subnet: str,
    engine: str,
    dtype: str,
    *,
    latency: "LatencySettings | None" = None,
    must_load: str | None = None,
) -> str:
    """How to get a chosen size in the form that it was measured in, or must load with.

    :param latency: how it was timed, so that its export is timed alike.
    """
    from dynabert.results import PLAIN
    from dynabert.sweep import ENGINE_DTYPES

    run_name = shlex.quote(str(run))
    wanted = {"onnx": "onnxruntime", "openvino": "openvino"}.get(must_load or "", engine)
    if must_load in ("transformers", "dynabert") or (wanted, dtype) == PLAIN:
        step, form = f"cut it out: dynabert extract {run_name} --subnet {subnet} --out small/", PLAIN
    else:
        form = (wanted, dtype if dtype in ENGINE_DTYPES[wanted] else "fp32")
        how = f"--engine {form[0]} --dtype {form[1]}{_timed_alike(latency)}"
        step = f"write it: dynabert export {run_name} --subnet {subnet} {how} --out deploy/"
    if form == (engine, dtype):
        return step
    return (
        f"{step}\nmetric and costs above are those of {engine} {dtype}; "
        f"for its own: dynabert measure {run_name} --engine {form[0]} --dtype {form[1]}"
    )


def _timed_alike(latency: "LatencySettings | None") -> str:
    """The options of an export that times it as it was measured; those that are as usual left out."""
    if latency is None:
        return ""
    batch, seq = latency.shapes[0]
    options = {"batch": (batch, 1), "seq": (seq, 128), "threads": (latency.n_threads, None)}
    return "".join(f" --{name} {value}" for name, (value, usual) in options.items() if value != usual)


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder of the files; replaced if there is an export in it.")],
    subnet: SubnetName = None,
    width: Width = None,
    depth: Depth = None,
    subnets: Annotated[
        str | None,
        typer.Option(help="Several sizes by commas, as ONNX graphs that share one file of weights."),
    ] = None,
    engine: Engine = "openvino",
    dtype: Dtype = "fp32",
    max_metric_drop: Annotated[
        float, typer.Option(help="How much of the main metric int8 or bf16 may cost: 0.01 is one point.")
    ] = 0.01,
    on_drop: Annotated[str, typer.Option(help="Beyond that: refuse, or fallback to fp32 for some layers.")] = "refuse",
    batch: Annotated[int, typer.Option(help="Sequences in the timed call.")] = 1,
    seq: Annotated[int, typer.Option(help="Tokens of each.")] = 128,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write one size as files for the engine that will run it, and prove on the validation rows that they agree.

    OUT has the engine's files, the tokenizer, export.json (differences from PyTorch, agreement with the full network,
    size, latency, where it comes from) and a README.md that says how to run it without dynabert. It appears only if the
    files are as good as asked for.
    """
    from dynabert.export import ExportSettings, export_run
    from dynabert.exported import ExportIndex
    from dynabert.progress import progress_bars

    chosen = sizes_of(subnets, subnet, width, depth)
    settings = ExportSettings(engine, dtype, max_metric_drop, on_drop, (batch, seq), threads)  # type: ignore[arg-type]
    with progress_bars() as bars:
        sizes = export_run(run, chosen, out, settings=settings, progress=bars.measuring)
    if as_json:
        print_json({"folder": str(out), "sizes": [asdict(size) for size in sizes]})
        return
    for size in sizes:
        _describe(size)
    if shared := ExportIndex.of(out).shared_bytes:
        typer.echo(f"weights of all sizes in one file: {shared / 1e6:.1f} MB")
    one = "" if len(sizes) == 1 else f" --subnet {sizes[0].subnet}"
    typer.echo(f'written to {out}; try it: dynabert predict {out}{one} "some text"')


def _describe(made: "Exported") -> None:
    """Print what is known of an exported size."""
    typer.echo(f"{made.subnet}: {made.engine} {made.version} {made.dtype}, {made.file_bytes / 1e6:.1f} MB")
    if made.n_fused is not None:
        typer.echo(f"attention in one kernel: {made.n_fused} of {made.n_layers} layers")
    if made.unquantised:
        typer.echo(f"layers left in fp32: {', '.join(map(str, made.unquantised))}")
    _describe_parity(made.parity, made.timing)


def _describe_parity(parity: "Parity", timing: "Timing", *, beside: str = "PyTorch") -> None:
    """Print how far a file is from the network that it was cut out of, and how fast it is.

    :param beside: what that network is called.
    """
    typer.echo(
        f"metric {parity.metric:.4f} on {parity.n_rows} rows; in {beside} {parity.torch_metric:.4f} (difference, 95 %: "
        f"{parity.difference_low:.4f} to {parity.difference_high:.4f}), the full network {parity.full_metric:.4f}"
    )
    if parity.negative_flips is None:
        typer.echo(f"correlation with {beside} {parity.same_size:.4f}, with the full network {parity.agreement:.4f}")
    else:
        typer.echo(
            f"agrees with {beside} {parity.same_size:.1%}, with the full network {parity.agreement:.1%}, "
            f"wrong where it is right {parity.negative_flips:.1%}"
        )
    typer.echo(f"largest difference of a logit {parity.max_difference:.2g}")
    typer.echo(f"{timing.batch} x {timing.seq} tokens: {timing.median_ms:.2f} ms, 95 % within {timing.p95_ms:.2f} ms")


def search(
    run: Run,
    max_flops_share: Annotated[
        float | None, typer.Option(help="FLOPs at most, as a share of the full network's: 0.5.")
    ] = None,
    max_flops: Annotated[float | None, typer.Option(help="FLOPs of a sequence of 128 tokens at most: 1.1e9.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters at most, for instance 12e6.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds at most, as `dynabert measure` lets them be predicted.")
    ] = None,
    engine: Engine = "torch",
    dtype: Dtype = "fp32",
    batch: Annotated[int | None, typer.Option(help="Batch of the latency; it must be measured.")] = None,
    seq: Annotated[int | None, typer.Option(help="Its tokens; they must be measured.")] = None,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Go by latency measured elsewhere or by other versions.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(help="At most, from the start, earlier runs of this search included.")
    ] = 10.0,
    trials: Annotated[
        int | None, typer.Option(help="Sizes to try at most; by default as many as the time allows.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Search the best size within a budget, with heads and neurons chosen for each layer; nothing is trained.

    Sizes are judged on the select rows; the validation rows then say what that gains over the best of the grid. What
    was tried is kept in RUN/search: the same command goes on, and other budgets use it too. --max-latency-ms goes by
    what `dynabert measure` found with --engine and --dtype at --batch and --seq; what is found is then measured so.
    """
    from dynabert.progress import progress_bars
    from dynabert.results import command_to_add
    from dynabert.search import Effort, budget_of, search_run

    budget = budget_of(
        max_flops_share=max_flops_share, max_flops=max_flops, max_params=max_params, max_latency_ms=max_latency_ms
    )
    effort = Effort(minutes, trials, seed)
    sweep = _times(run, engine, dtype, (batch, seq), any_machine=any_machine) if max_latency_ms is not None else None
    if sweep is None and (engine, dtype, batch, seq) != ("torch", "fp32", None, None):
        raise SettingError("--engine, --dtype, --batch and --seq are of latency; give --max-latency-ms, or leave them")
    with progress_bars() as bars:
        result = search_run(run, budget, effort=effort, sweep=sweep, progress=bars.measuring, device=device)
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(result.table(), nl=False)
        typer.echo(f"have pick know it: {command_to_add(run, result.found.subnet, engine=engine, dtype=dtype)}")
        timed = None if sweep is None else sweep.context.latency
        typer.echo(_next_step(run, result.found.subnet, engine, dtype, latency=timed))


def _times(run: Path, engine: str, dtype: str, shape: tuple[int | None, int | None], *, any_machine: bool) -> "Sweep":
    """The measured sizes at one batch and length, from this machine unless any will do."""
    from dynabert.results import check_machine, load_sweep

    sweep = load_sweep(run, engine=engine, dtype=dtype).at(batch=shape[0], seq=shape[1])
    if not any_machine:
        check_machine(sweep)
    return sweep


def extract(
    model: Annotated[
        str, typer.Argument(help="A run folder, or folder or hub name of an elastic model.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the small model; replaced if there is a model in it.")],
    subnet: SubnetName = None,
    width: Width = None,
    depth: Depth = None,
    pad_heads: Annotated[
        bool, typer.Option("--pad-heads", help="Fill the cut heads with zeros: stock format, attention keeps its cost.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Of a run: load it again, and compare it with the run on the validation rows."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Cut one size out of a run or an elastic model: a small Hugging Face folder that works on its own.

    Only what that size keeps is read, so memory is about that of the small model; --check loads all sizes.
    """
    from dynabert.extraction import extract_folder
    from dynabert.results import check_extracted, extract_run, rows_of
    from dynabert.saved import is_run

    chosen = subnet_of(subnet, width, depth)
    if check and not is_run(model):
        raise SettingError(f"{model} is no run, so there are no rows to check on; leave --check out")
    rows = rows_of(model) if check else None  # rows that have moved are said before anything is written
    cut = (extract_run if is_run(model) else extract_folder)(model, chosen, out, pad_heads=pad_heads)
    checked = None if rows is None else check_extracted(model, chosen, out, rows=rows)
    if as_json:
        about = {} if checked is None else {"parity": asdict(checked.parity), "timing": asdict(checked.timing)}
        print_json({"subnet": chosen.name, **asdict(cut), "folder": str(cut.folder), **about})
        return
    typer.echo(f"{chosen.name}: {cut.n_params / 1e6:.2f} M parameters in {cut.folder}")
    typer.echo(f"loads with {cut.loads_with}")
    if checked is not None:
        _describe_parity(checked.parity, checked.timing, beside="the run")
    typer.echo(f'try it: dynabert predict {cut.folder} "some text"')


def predict(
    model: Annotated[
        str, typer.Argument(help="Model folder, for instance an extracted or exported one.", show_default=False)
    ],
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Texts, or one file of them; a pair is separated by a tab. - or none: stdin."),
    ] = None,
    subnet: Annotated[
        str | None, typer.Option(help="Which size, of an elastic folder or one with several exports.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say what a model makes of a text, of a file, or of standard input: one text, or tab-separated pair, a line."""
    from dynabert.predict import predict_lines

    predictions = predict_lines(model, lines_of(text or ["-"]), subnet=subnet, n_threads=threads)
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
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to show the attention maps of, or a file of texts; may be given several times."),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show a run as one HTML page that opens offline: sizes, costs, training, importance, attention.

    Three short validation texts stand in it, or those of --text. What takes the model to find out is kept in RUN for
    the next report.
    """
    from dynabert.progress import progress_bars
    from dynabert.report import report_run

    texts = None if text is None else tuple(lines_of(text))
    with progress_bars() as bars:
        made = report_run(run, out, images=images, texts=texts, progress=bars.measuring, device=device)
    if as_json:
        print_json(json.loads(json.dumps(asdict(made), default=str)))
    else:
        typer.echo(f"written to {made.page}, {made.n_bytes / 1e6:.1f} MB: open it in a browser")
        if images is not None:
            typer.echo(f"{len(made.images)} images in {images}")
