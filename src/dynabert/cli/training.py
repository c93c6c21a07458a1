"""The commands that train: `train`, its dry run, and the `demo`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dynabert.distributed import launched_rank, n_launched
from dynabert.errors import SettingError, one_of

if TYPE_CHECKING:
    from dynabert.plan import Plan, Source
    from dynabert.recipes import ScheduleKind, Stage
    from dynabert.sweep import LatencySettings

from dynabert.cli.options import Device, Json, Limit, Run, latency_of, numbers_of, print_json, print_sweep


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
    metric: Annotated[
        str | None,
        typer.Option(
            help="Of your own rows: accuracy, accuracy_f1 (two classes), matthews (for classes of unequal size) or "
            "pearson_spearman; the first part of the name chooses the weights.",
            show_default=False,
        ),
    ] = None,
    limit: Limit = None,
    recipe: Annotated[str, typer.Option(help="default, two-stage or paper.")] = "default",
    widths: Annotated[str, typer.Option(help="Widths to train, comma-separated.")] = "1,0.75,0.5,0.25",
    depths: Annotated[str, typer.Option(help="Depths to train, comma-separated.")] = "1,0.75,0.5",
    schedule: Annotated[
        str | None,
        typer.Option(help="Which sizes each step trains: all, sandwich, light or ladder; by default the recipe's."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs of each stage; default has 10, the others 3.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of each stage; default has 1e-4, the others 2e-5.")
    ] = None,
    finetune: Annotated[float | None, typer.Option(help="Epochs of one more stage, on the labels alone.")] = None,
    teacher_epochs: Annotated[
        float | None,
        typer.Option(
            help="Epochs of fine-tuning the teacher; 0 takes the model as it is; by default 0 where its head names the "
            "classes of the rows, else 3.",
            show_default=False,
        ),
    ] = None,
    teacher_lr: Annotated[float | None, typer.Option(help="Rate of fine-tuning the teacher; 5e-5 by default.")] = None,
    rewire: Annotated[bool, typer.Option(help="Put important heads and neurons first.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of a step, over all processes; 32 by default.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Instead of --batch-size: tokens of a process at most, padding included."),
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Split each step into so many parts, which takes less memory.")] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens of a row at most.")] = 128,
    seed: Annotated[int, typer.Option(help="Random seed, of everything.")] = 42,
    precision: Annotated[
        str,
        typer.Option(help="Of matrix products: bf16, fp32, or auto: bf16 where the device has it."),
    ] = "auto",
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
    """Turn an encoder into a DynaBERT: teacher, rewiring, distillation into all sizes, and a table of them.

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
    source = Source(task, data, train, validation, text, text_pair, label, limit, metric)
    plan = Plan(
        recipe=recipe_of(recipe).adjusted(epochs=epochs, lr=lr, finetune=finetune, schedule=_schedule(schedule)),
        grid=SubnetGrid(numbers_of("widths", widths), numbers_of("depths", depths)),
        training=Training(seed=seed, precision=precision, warmup=warmup, saving=saving),
        order="importance" if rewire else "as-is",
        batching=Batching(
            32 if batch_size is None and max_tokens is None else batch_size, max_tokens, accumulate, max_length
        ),
    )
    plan = replace(plan, teacher=_teacher_stage(teacher_epochs, teacher_lr))
    if dry_run:
        _estimate(model, source, out, plan, as_json=as_json, latency=latency_of(latency), device=device)
        return
    _train(
        model,
        source,
        out,
        plan,
        as_json=as_json,
        latency=latency_of(latency),
        device=device,
        track=track or (),
        force_resume=force_resume,
    )


def moved(
    run: Run,
    data: Annotated[Path, typer.Argument(help="The folder that holds its rows now.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Tell a run where its rows are, on another machine say; they must be the ones that it was made from.

    DATA holds the files of its task, or its own files by the names that they had. Measuring, exporting, searching and
    studies read them. Other seeds of a study, and methods that fine-tune the encoder itself, also need the encoder
    where it was.
    """
    from dynabert.saved import moved as note

    source = note(run, data)
    if as_json:
        print_json({"run": str(run), "source": source.to_json()})
    else:
        typer.echo(f"the rows of {run} are those of {data}")


def demo(
    out: Annotated[Path, typer.Option(help="Run folder; its corpus and encoder are made beside it.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Random seed, of everything.")] = 0,
    as_json: Json = False,
) -> None:
    """Do the whole job with no download: a corpus and a small BERT made on the spot, then the same path as train."""
    from dynabert.demo import prepare

    model, source, plan = prepare(out, seed=seed)
    _train(str(model), source, out, plan, as_json=as_json, latency=latency_of(True))


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
    from dynabert.results import SWEEP_FILE
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
    print_sweep(sweep, as_json=as_json)
    if not as_json:
        typer.echo(f"\nwritten to {out}: elastic/ (all sizes in one model), teacher/, {SWEEP_FILE}, {METRICS_FILE}")
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
        print_json(cost.to_dict())
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
