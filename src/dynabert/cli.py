"""The command line: one sub-command per verb. Each parses, calls, prints.

Nothing heavy is imported before a command runs, so that help and mistakes answer at once. Results go to standard
output, everything else to standard error; with --json standard output holds one object and nothing else.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from dynabert.distributed import launched_rank, n_launched
from dynabert.errors import DynabertError, SettingError, Stopped, StorageError, one_of
from dynabert.failures import stop_signals

if TYPE_CHECKING:
    from dynabert.plan import Plan, Source
    from dynabert.recipes import ScheduleKind, Stage
    from dynabert.subnet import Subnet
    from dynabert.sweep import LatencySettings, Sweep

app = typer.Typer(
    name="dynabert",
    help="Train one BERT, run it at any size: choose the width and the depth of an encoder after training.",
    epilog="Start with: dynabert demo --out runs/demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Run = Annotated[Path, typer.Argument(help="A run folder: the --out of a train command.", show_default=False)]
Runs = Annotated[list[Path], typer.Argument(help="Run folders; of several the mean over their tasks counts.")]
Seeds = Annotated[int, typer.Option(help="Seeds: that of the run and the ones after it.")]
Budget = Annotated[float, typer.Option(help="Training FLOPs of each training, as a share of the run's.")]
Limit = Annotated[int | None, typer.Option(help="Train on a random part of this many rows.")]
SubnetName = Annotated[
    str | None,
    typer.Option("--subnet", help="A size by name: w0.5-d0.75, or h1-n0.5-d0.75 for heads and neurons apart."),
]
Width = Annotated[float | None, typer.Option("--width", help="Share of the heads and neurons, in (0, 1].")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")]
Depth = Annotated[float | None, typer.Option("--depth", help="Share of the layers, in (0, 1].")]


@app.callback()
def check_launch(context: typer.Context) -> None:
    """Only training is shared among processes; any other command would be done by each of them."""
    if n_launched() > 1 and context.invoked_subcommand != "train":
        raise SettingError(
            f"{context.invoked_subcommand} runs in one process, and {n_launched()} were started; leave torchrun out"
        )


@app.command()
def train(
    model: Annotated[str, typer.Option(help="Folder or hub name of a BERT, RoBERTa, XLM-R or CamemBERT.")],
    out: Annotated[Path, typer.Option(help="Run folder: made, or gone on with if it is of the same run.")],
    task: Annotated[str | None, typer.Option(help="cola sst2 mrpc stsb qqp mnli qnli rte wnli trec imdb.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the task's train and validation files.")] = None,
    train: Annotated[Path | None, typer.Option(help="Your own training rows: parquet, csv, tsv or jsonl.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Your own rows to report on.")] = None,
    text: Annotated[str | None, typer.Option(help="Name of the text column.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="Name of a second text column.")] = None,
    label: Annotated[str | None, typer.Option(help="Name of the label column; decimals make it a regression.")] = None,
    limit: Limit = None,
    recipe: Annotated[str, typer.Option(help="default, paper or sandwich.")] = "default",
    widths: Annotated[str, typer.Option(help="Widths to train, comma-separated.")] = "1,0.75,0.5,0.25",
    depths: Annotated[str, typer.Option(help="Depths to train, comma-separated.")] = "1,0.75,0.5",
    schedule: Annotated[
        str | None, typer.Option(help="Sizes of a step in the stages of the whole grid: all, sandwich or ladder.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs of each stage; the recipe says 3.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of each stage; the recipe says.")] = None,
    finetune: Annotated[float | None, typer.Option(help="Epochs of a last stage on the labels alone.")] = None,
    teacher_epochs: Annotated[
        float | None, typer.Option(help="Epochs of fine-tuning the teacher; 0 for none; by default 3 without a head.")
    ] = None,
    teacher_lr: Annotated[float | None, typer.Option(help="Learning rate of that; 5e-5 by default.")] = None,
    rewire: Annotated[bool, typer.Option(help="Put important heads and neurons first.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of a step, over all processes; 32 by default.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Instead: as many rows as give each process this many tokens, with padding.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Parts that each process takes its rows of a step in.")] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens of a row at most.")] = 128,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
    precision: Annotated[str, typer.Option(help="Of the matrix products: bf16 or fp32.")] = "bf16",
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")] = 0.0,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Also a checkpoint after every so many steps.")] = None,
    on_disk_full: Annotated[str, typer.Option(help="exit, or wait until there is space.")] = "exit",
    force_resume: Annotated[
        bool, typer.Option("--force-resume", help="Go on in the folder of a run with other settings; logs which.")
    ] = False,
    latency: Annotated[bool, typer.Option(help="Measure latency in the final sweep.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, say what the run will take, and write nothing.")
    ] = False,
    track: Annotated[list[str] | None, typer.Option(help="Also send the numbers to: tensorboard, wandb.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Turn an encoder into a DynaBERT: teacher, rewiring, width stage, depth stage, and a table of all sizes.

    Known task:  dynabert train --model bert-base-uncased --task sst2 --data DIR --out runs/sst2

    Own data:    dynabert train --model ... --train train.csv --validation dev.csv --text text --label label --out mine

    Many GPUs?   torchrun --nproc_per_node 8 -m dynabert train ...

    Interrupted? Run the same command again: it goes on from the last checkpoint.
    """
    from dynabert.distill import Training
    from dynabert.failures import Saving
    from dynabert.plan import Batching, Plan, Source
    from dynabert.recipes import recipe_of
    from dynabert.subnet import SubnetGrid

    saving = Saving(checkpoint_minutes, checkpoint_steps, on_disk_full=on_disk_full)  # type: ignore[arg-type]
    source = Source(task, data, train, validation, text, text_pair, label, limit)
    plan = Plan(
        recipe=recipe_of(recipe).adjusted(epochs=epochs, lr=lr, finetune=finetune, schedule=_schedule(schedule)),
        grid=SubnetGrid(_numbers("widths", widths), _numbers("depths", depths)),
        training=Training(seed=seed, precision=precision, warmup=warmup, saving=saving),
        order="importance" if rewire else "as-is",
        batching=Batching(
            32 if batch_size is None and max_tokens is None else batch_size, max_tokens, accumulate, max_length
        ),
    )
    plan = replace(plan, teacher=_teacher_stage(teacher_epochs, teacher_lr))
    if dry_run:
        _estimate(model, source, out, plan, as_json=as_json, latency=_latency(latency), device=device)
        return
    _train(
        model,
        source,
        out,
        plan,
        as_json=as_json,
        latency=_latency(latency),
        device=device,
        track=track or (),
        force_resume=force_resume,
    )


@app.command()
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
    from dynabert.run import measure_run
    from dynabert.sweep import LatencySettings

    chosen = None if (subnet, width, depth) == (None, None, None) else (_subnet(subnet, width, depth),)
    settings = LatencySettings(batch, seq, repeats, dtype, engine) if latency else None
    with progress_bars() as bars:
        sweep = measure_run(run, subnets=chosen, latency=settings, progress=bars.measuring, device=device)
    _print_sweep(sweep, as_json=as_json)


@app.command()
def pick(
    run: Run,
    max_params: Annotated[float | None, typer.Option(help="Parameters at most, for instance 12e6.")] = None,
    max_flops: Annotated[float | None, typer.Option(help="FLOPs of one sequence at most.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds at most, as the sweep measured.")] = None,
    min_metric: Annotated[float | None, typer.Option(help="Main metric at least.")] = None,
    as_json: Json = False,
) -> None:
    """Choose the best size within a budget, from the measured ones; the cheapest of equally good ones."""
    from dynabert.run import load_sweep

    row = load_sweep(run).pick(
        max_params=max_params, max_flops=max_flops, max_latency_ms=max_latency_ms, min_metric=min_metric
    )
    if as_json:
        _print_json(row.to_dict())
    else:
        cost = f"{row.cost.n_params / 1e6:.2f} M parameters, {row.cost.flops / 1e9:.2f} GFLOPs"
        typer.echo(f"{row.subnet}: metric {row.metric:.4f}, {row.n_layers:.3g} of {row.of_layers} layers, {cost}")
        typer.echo(f"cut it out: dynabert extract {run} --subnet {row.subnet} --out small/")


@app.command()
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
    from dynabert.run import extract_run

    chosen = _subnet(subnet, width, depth)
    cut = extract_run(run, chosen, out, pad_heads=pad_heads)
    if as_json:
        _print_json({"subnet": chosen.name, **asdict(cut), "folder": str(cut.folder)})
    else:
        typer.echo(f"{chosen.name}: {cut.n_params / 1e6:.2f} M parameters in {cut.folder}")
        typer.echo(f"loads with {cut.loads_with}")
        typer.echo(f'try it: dynabert predict {cut.folder} "some text"')


@app.command()
def compare(
    runs: Runs,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: deebert, fastbert, layerdrop, layerdrop-0.5, layerdrop-validated, first-layers, "
            "first-layers-distilled, alone; all by default.",
            show_default=False,
        ),
    ] = None,
    seeds: Seeds = 1,
    lrs: Annotated[str | None, typer.Option(help="Learning rates to tune over; by default the run's alone.")] = None,
    budget: Budget = 1.0,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Train other methods beside a run: same teachers, same rows, same training FLOPs, paired by row and seed.

    Each method's size or threshold is chosen on the select rows, at half and at a quarter of the full network's FLOPs.
    Interrupted? Run the same command again.
    """
    from dynabert.baselines import METHODS
    from dynabert.progress import progress_bars
    from dynabert.studies.compare import compare as study

    chosen = tuple(METHODS) if methods is None else _names(methods)
    rates = () if lrs is None else _numbers("lrs", lrs)
    with progress_bars() as bars:
        result = study(*runs, methods=chosen, n_seeds=seeds, lrs=rates, budget=budget, limit=limit, hooks=bars)
    if as_json:
        _print_json(result.to_dict())
    else:
        typer.echo(result.table(), nl=False)


@app.command()
def ablate(
    runs: Runs,
    factors: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: rewiring, distillation, assistant, teacher-width, schedule, finetune, depth-rule, "
            "recipe, learning-rate; all by default.",
            show_default=False,
        ),
    ] = None,
    seeds: Seeds = 3,
    lrs: Annotated[
        str | None,
        typer.Option(help="Learning rates to tune over; by default a third of the run's, the run's, three times it."),
    ] = None,
    budget: Budget = 1.0,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Say what each ingredient is worth: change one factor of a run at a time, at equal training FLOPs.

    Every variant trains from the same teachers with the learning rate that is best for it on the select rows, and is
    paired with the run's own plan by row and seed. Interrupted? Run the same command again.
    """
    from dynabert.progress import progress_bars
    from dynabert.studies.ablate import ablate as study
    from dynabert.studies.factors import ALL_FACTORS

    chosen = ALL_FACTORS if factors is None else _names(factors)
    rates = () if lrs is None else _numbers("lrs", lrs)
    with progress_bars() as bars:
        result = study(*runs, factors=chosen, n_seeds=seeds, lrs=rates, budget=budget, limit=limit, hooks=bars)
    if as_json:
        _print_json(result.to_dict())
    else:
        typer.echo(result.table(), nl=False)


@app.command()
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

    predictions = predict_lines(model, _lines(text or ["-"]))
    if as_json:
        _print_json({"predictions": [asdict(prediction) for prediction in predictions]})
        return
    for prediction in predictions:
        label = "" if prediction.label is None else f"{prediction.label}\t"
        typer.echo(f"{label}{prediction.score:.4f}\t{prediction.text}")


@app.command()
def attention(
    run: Run,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to study instead, or a file of texts; may be given several times.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Validation rows to study, drawn at random.")] = 200,
    threshold: Annotated[
        float, typer.Option(help="Similarity from which on a pattern counts as reproduced, in (0, 1).")
    ] = 0.85,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it: FILE.svg or FILE.png.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare the attention of every size with the teacher's: how many of its patterns do the remaining heads keep?"""
    from dynabert.progress import progress_bars
    from dynabert.studies.attention import attention_of_run
    from dynabert.studies.attention_figure import check_figure, save_figure

    if plot is not None:
        check_figure(plot)
    with progress_bars() as bars:
        study = attention_of_run(
            run,
            texts=None if text is None else _lines(text),
            n_rows=rows,
            threshold=threshold,
            progress=bars.measuring,
            device=device,
        )
    if out is not None:
        study.to_json(out)
    if plot is not None:
        save_figure(study, plot)
    if as_json:
        _print_json(study.to_dict())
    else:
        typer.echo(study.table())


@app.command()
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
        _print_json(json.loads(json.dumps(asdict(made), default=str)))
    else:
        typer.echo(f"written to {made.page}, {made.n_bytes / 1e6:.1f} MB: open it in a browser")
        if images is not None:
            typer.echo(f"{len(made.images)} images in {images}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder; its corpus and encoder are made beside it.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: Json = False,
) -> None:
    """Do the whole job with no download: a corpus and a small BERT made on the spot, then the same path as train."""
    from dynabert.demo import prepare

    model, source, plan = prepare(out, seed=seed)
    _train(str(model), source, out, plan, as_json=as_json, latency=_latency(True))


def _train(
    model: str,
    source: "Source",
    out: Path,
    plan: "Plan",
    *,
    as_json: bool,
    latency: "LatencySettings | None",
    device: str | None = None,
    track: Sequence[str] = (),
    force_resume: bool = False,
) -> None:
    from dynabert import run
    from dynabert.hooks import HookList
    from dynabert.progress import progress_bars
    from dynabert.run_folder import METRICS_FILE
    from dynabert.trackers import tracking

    first = launched_rank() == 0
    with tracking(track if first else (), out) as tracked, progress_bars(shown=first) as bars:
        hooks = HookList(bars, tracked)
        sweep = run.train(
            model,
            source,
            out,
            plan=plan,
            hooks=hooks,
            latency=latency,
            progress=bars.measuring,
            device=device,
            force_resume=force_resume,
        )
    if not first:
        return
    _print_sweep(sweep, as_json=as_json)
    if not as_json:
        typer.echo(f"\nwritten to {out}: elastic/ (all sizes in one model), teacher/, {run.SWEEP_FILE}, {METRICS_FILE}")
        middle = sorted(row.cost.n_params for row in sweep.rows)[len(sweep.rows) // 2]
        typer.echo(f"next: dynabert pick {out} --max-params {middle / 1e6:.2g}e6")


def _estimate(
    model: str,
    source: "Source",
    out: Path,
    plan: "Plan",
    *,
    as_json: bool,
    latency: "LatencySettings | None",
    device: str | None,
) -> None:
    from dynabert.estimate import estimate
    from dynabert.progress import progress_bars

    if n_launched() > 1:
        raise SettingError(f"a dry run is one process, and {n_launched()} were started; leave torchrun out")
    with progress_bars() as bars:
        cost = estimate(model, source, out, plan=plan, latency=latency, progress=bars.measuring, device=device)
    if as_json:
        _print_json(cost.to_dict())
    else:
        typer.echo(cost.text(), nl=False)


def _teacher_stage(epochs: float | None, lr: float | None) -> "Stage | Literal['auto'] | None":
    from dynabert.recipes import TEACHER

    if epochs is None and lr is None:
        return "auto"
    if epochs == 0:
        return None
    return replace(TEACHER, epochs=TEACHER.epochs if epochs is None else epochs, lr=TEACHER.lr if lr is None else lr)


def _schedule(name: str | None) -> "ScheduleKind | None":
    from dynabert.recipes import SCHEDULES

    if name is not None and name not in SCHEDULES:
        raise SettingError(one_of("schedule", name, SCHEDULES))
    return name


def _latency(wanted: bool) -> "LatencySettings | None":
    from dynabert.sweep import LatencySettings

    return LatencySettings() if wanted else None


def _subnet(name: str | None, width: float | None, depth: float | None) -> "Subnet":
    from dynabert.subnet import Subnet

    if name is None and width is None and depth is None:
        raise SettingError("no size given; use --subnet w0.5-d0.75, or --width 0.5 --depth 0.75")
    if name is not None and (width is not None or depth is not None):
        raise SettingError("give --subnet, or --width and --depth, not both")
    if name is not None:
        return Subnet.parse(name)
    return Subnet(1.0 if width is None else width, 1.0 if depth is None else depth)


def _names(text: str) -> tuple[str, ...]:
    """The words of a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise SettingError(f"--{option} {text!r} is not a list of numbers; write it like 1,0.75,0.5") from None


def _lines(texts: list[str]) -> Iterator[str]:
    if len(texts) > 1 and any(_is_file(text) for text in texts):
        raise SettingError(f"{next(filter(_is_file, texts))} is a file; give one file alone, or texts")
    if len(texts) == 1 and Path(texts[0]).suffix in (".txt", ".tsv", ".csv", ".jsonl") and not _is_file(texts[0]):
        raise SettingError(f"there is no file {texts[0]}; check its path; a text that looks like one goes to stdin")
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


def _print_sweep(sweep: "Sweep", *, as_json: bool) -> None:
    if as_json:
        _print_json(sweep.to_dict())
    else:
        typer.echo(sweep.table())


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"dynabert: {_who()}" + " ".join(message.split()), err=True)
    sys.exit(code)


def _who() -> str:
    """Which process speaks, where there are several."""
    return f"[rank {launched_rank()}] " if n_launched() > 1 else ""


def main() -> NoReturn:
    """Run the command line. A user's mistake is one line; exit codes are those of `dynabert.failures`."""
    try:
        level = logging.WARNING if launched_rank() == 0 else logging.ERROR
        logging.basicConfig(format=f"dynabert: {_who()}%(message)s", level=level, stream=sys.stderr)
        with stop_signals():
            code = app(standalone_mode=False)
    except Stopped as stop:
        _fail(str(stop), stop.exit_code)
    except DynabertError as error:
        _fail(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; run the same command again (a training goes on from its last checkpoint)", 130)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}", StorageError.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()}; see dynabert --help", 2)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
