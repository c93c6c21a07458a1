"""A run folder: teacher, rewiring, the stages of a recipe, and the sweep, each done once and resumed exactly.

    run.json           what the run is made of (its fingerprint), and what it was called with; see run_folder.py
    teacher/           the fine-tuned network, a stock Hugging Face folder
    importance.safetensors
    stages/<name>/     the network after each stage but the last, elastic checkpoints
    checkpoints/       inside the stage that is running
    elastic/           the result: an elastic checkpoint with its tokenizer and model card
    sweep.json         every Subnet, measured
    metrics.jsonl      the losses of every Subnet; of lines for the same step the last one counts

A part that is there is not done again, so a run can end at any moment and go on with the same command.

Of many ranks only rank 0 touches the folder. The others are told what lies in it, and get weights and checkpoints from
rank 0, so the folder need not be visible to them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dynabert.checkpoint import CHECKPOINTS, delete_checkpoints, newest_checkpoint, save_checkpoint
from dynabert.distill import originals, teacher_of, train_stage
from dynabert.distributed import Shared, World, joined
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError, Stopped
from dynabert.failures import Saving, held, with_space
from dynabert.hooks import Hooks, Snapshot, StepReport
from dynabert.hooks import Progress as StageProgress
from dynabert.job import Job, Prepared, pick_device, prepare
from dynabert.loading import load
from dynabert.measure import LatencySettings, Progress, machine_of, selection_score
from dynabert.model_files import hub_name, located
from dynabert.plan import Plan, Source, fingerprint
from dynabert.precision import AUTO, precision_on, warn_if_emulated
from dynabert.recipes import Stage
from dynabert.results import IMPORTANCE_FILE, SWEEP_FILE, beside_teacher, complete, deployed_of
from dynabert.rewire import Importance, reordered, rewire, score
from dynabert.run_card import BASE, ROWS, refresh_card
from dynabert.run_folder import MACHINE, METRICS_FILE, MetricsLog, known_identity, opened, space_needed
from dynabert.sweep import Sweep
from dynabert.workload import PlannedStage, planned_stages


class RunHooks(Hooks):
    """Writes the metrics and checkpoints of a run, on rank 0 alone, and passes everything on to the caller's hooks."""

    def __init__(self, out: Path, hooks: Hooks, saving: Saving, *, writes: bool = True) -> None:
        self.out, self.hooks, self.saving = out, hooks, saving
        self.metrics = MetricsLog(out / METRICS_FILE) if writes else None
        self.saved = ""

    def planned(self, stages: Sequence[PlannedStage]) -> None:
        """Pass it on."""
        self.hooks.planned(stages)

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """Pass it on."""
        self.hooks.started(stage, n_steps, step)

    def stepped(self, report: StepReport) -> None:
        """Write the losses of the steps that are logged, and every step that was left out."""
        if report.losses or report.skipped:
            self._write(asdict(report))
        self.hooks.stepped(report)

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """Write the score on the `select` rows."""
        self._write({"stage": stage.name, "step": step, "select_score": score, "best": best})
        self.hooks.evaluated(stage, step, score, best)

    def checkpoint(self, stage: Stage, snapshot: Callable[[], Snapshot]) -> None:
        """Write a checkpoint."""
        if self.metrics is not None:
            taken = snapshot()
            self.write(partial(save_checkpoint, self.out / CHECKPOINTS, stage.name, taken, keep=self.saving.keep))
            self.saved = f"stage {stage.name!r} is saved at step {taken.progress.step}"
        self.hooks.checkpoint(stage, snapshot)

    def write(self, action: Callable[[], object]) -> None:
        """Write something into the run folder, by the settings for full disks."""
        with_space(action, self.out, self.saving.on_disk_full)

    def _write(self, line: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.write(partial(self.metrics.write, line))


def train(
    model: str | Path,
    source: Source,
    out: str | Path,
    *,
    plan: Plan | None = None,
    hooks: Hooks | None = None,
    latency: LatencySettings | None = LatencySettings(),  # noqa: B008 (a frozen value)
    progress: Progress | None = None,
    device: str | None = None,
    force_resume: bool = False,
) -> Sweep:
    """Turn an encoder into a DynaBERT: teacher, rewiring, the recipe's stages, sweep. Resumes where it was interrupted.

    Started by torchrun, all its processes train together, and rank 0 alone writes. Each needs the model and the rows.

    :param model: folder or hub name of a model of a known family, with or without a task head.
    :param source: the rows.
    :param out: the run folder; made, or resumed if it is of the same run.
    :param plan: what to do; by default the default recipe over the default grid.
    :param hooks: reports.
    :param latency: how latency is measured in the final sweep; None leaves it out.
    :param progress: told how far the final sweep is.
    :param device: where to compute; by default the GPU if there is one. With several processes each takes its own GPU.
    :param force_resume: go on in the folder of a run with other data, settings or seed, and log what differed. The
        result then is of neither run alone.
    :return: every Subnet measured on the validation rows, latency on rank 0 alone; also in ``sweep.json``.
    :raises SettingError: settings that do not fit, or a folder that belongs to another run or is in use.
    :raises DataError: rows that cannot be used.
    :raises ModelFileError: a model that cannot be used.
    :raises StorageError: too little space for the run, or an error of writing.
    :raises Stopped: a signal came, see `dynabert.failures.stop_signals`.
    :raises LostRankError: another process of the job died.
    """
    out = Path(out)
    with _begun(model, source, out, plan or Plan(), hooks, latency=latency, device=device, force=force_resume) as begun:
        run, elastic = begun
        run.train(elastic)
        done = None if force_resume else _measured(out, latency, run.world)
        return done or run.measure(elastic, latency=latency, progress=progress)


def train_teacher(
    model: str | Path,
    source: Source,
    out: str | Path,
    *,
    plan: Plan,
    hooks: Hooks | None = None,
    device: str | None = None,
) -> Path:
    """The first part of `train` alone: fine-tune the full network, or take it as it is. Resumes likewise.

    :param model: as for `train`, and so are the others.
    :return: the teacher's folder, ``OUT/teacher``.
    """
    out = Path(out)
    with _begun(model, source, out, plan, hooks, latency=None, device=device) as (run, elastic):
        elastic.to(run.world.device)
        run.teacher(elastic)
    return out / "teacher"


@contextmanager
def _begun(
    model: str | Path,
    source: Source,
    out: Path,
    plan: Plan,
    hooks: Hooks | None,
    *,
    latency: LatencySettings | None,
    device: str | None = None,
    force: bool = False,
) -> Iterator[tuple["_Run", ElasticModel]]:
    """A run with everything loaded and checked, its folder made or taken up, and the network that it trains."""
    with joined(pick_device(device)) as world:
        if world.size > 1 and plan.training.saving.on_disk_full == "wait":
            raise SettingError(
                "several processes do not wait for space: their exchanges would time out; leave on_disk_full at exit"
            )
        plan = with_precision(plan, out, world)
        job = prepare(model, source, plan, latency=latency, world=world)
        called = {
            "model": located(model),
            "source": source.to_json(),
            BASE: hub_name(model),
            ROWS: {role: len(getattr(job.roles, role)) for role in ("train", "select", "validation")},
            MACHINE: asdict(machine_of(torch.device(world.device))),
        }
        with _opened_together(out, job, called, world, force=force):
            hooks = RunHooks(out, hooks or Hooks(), job.plan.training.saving, writes=world.is_first)
            yield _Run(out, job.plan, job.prepared, hooks, world), job.elastic


def with_precision(plan: Plan, out: Path, world: World) -> Plan:
    """A plan whose precision is decided on: that of the run that is gone on with, or what the device is fast at.

    :param out: the run folder, which need not be there.
    """
    wanted = plan.training.precision
    if wanted == AUTO:
        wanted = world.on_first(lambda: known_identity(out).get("precision") or precision_on(world.device))
    if world.is_first:
        warn_if_emulated(wanted, world.device)
    return replace(plan, training=replace(plan.training, precision=wanted))


def _measured(out: Path, latency: LatencySettings | None, world: World) -> Sweep | None:
    """The sweep that a finished run has already, if it says all that is asked for."""
    if world.size > 1 or not (out / SWEEP_FILE).exists():
        return None
    sweep = Sweep.from_json(out / SWEEP_FILE)
    return sweep if latency in (None, sweep.context.latency) else None


def _stage_folders(out: Path, plan: Plan) -> list[Path]:
    """Where the result of each stage goes; that of the last one is the result of the run."""
    return [*(out / "stages" / stage.name for stage in plan.recipe.stages[:-1]), out / "elastic"]


def disk_bytes(out: Path, plan: Plan, elastic: ElasticModel) -> int:
    """Bytes that a run will still write to its folder, at most at one time."""
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in elastic.model.parameters())
    folders = [out / "teacher", *_stage_folders(out, plan)]
    return space_needed(folders, out / CHECKPOINTS, weight_bytes=weight_bytes, keep=plan.training.saving.keep)


class _Run:
    """The parts of a run, each of which is skipped where its result lies in the folder already."""

    def __init__(self, out: Path, plan: Plan, prepared: Prepared, hooks: RunHooks, world: World) -> None:
        self.out, self.plan, self.prepared, self.hooks, self.world = out, plan, prepared, hooks, world

    def train(self, elastic: ElasticModel) -> None:
        """All parts but the last, in place."""
        elastic.to(self.world.device)
        steps_per_epoch, seed = len(self.prepared.train), self.plan.training.seed
        self.hooks.planned(planned_stages(self.plan.stages, elastic, steps_per_epoch=steps_per_epoch, seed=seed))
        self.teacher(elastic)
        self.rewire(elastic)
        for folder, stage, original in zip(
            _stage_folders(self.out, self.plan),
            self.plan.recipe.stages,
            originals(self.plan.recipe.stages, elastic.copy()),
            strict=True,
        ):
            self.stage(elastic, original, folder, stage)

    def measure(self, elastic: ElasticModel, *, latency: LatencySettings | None, progress: Progress | None) -> Sweep:
        """Measure the result beside its teacher, and write ``sweep.json``."""
        teacher = elastic.copy()
        self._take_weights(teacher, self.out / "teacher")
        sweep = beside_teacher(teacher, elastic, self.prepared, latency=latency, progress=progress, world=self.world)
        if self.world.is_first:
            self.hooks.write(partial(refresh_card, self.out, sweep, deployed_of(self.out, sweep)))
            sweep.to_json(self.out / SWEEP_FILE)  # last: where it is, the run has nothing left to do
        return sweep

    def teacher(self, elastic: ElasticModel) -> None:
        """Fine-tune the full network, or take it as it is."""
        stage = self.plan.teacher if isinstance(self.plan.teacher, Stage) else None
        self._finish(elastic, self.out / "teacher", stage, lambda: None)

    def rewire(self, elastic: ElasticModel) -> None:
        """Put the important heads and neurons first."""
        if self.plan.order == "as-is":
            return
        path = self.out / IMPORTANCE_FILE
        if not self.world.on_first(path.exists):
            scored = score(elastic, self.prepared.train, scores=self.plan.recipe.scores, world=self.world)
            self.world.on_first(lambda: self.hooks.write(partial(scored.save, path)))

        def saved() -> Shared:
            importance = Importance.load(path)
            return Shared(importance.scores, {"heads": importance.heads, "neurons": importance.neurons})

        told = self.world.from_first(saved)
        importance = Importance(told.tensors["heads"], told.tensors["neurons"], told.value)
        rewire(elastic, reordered(importance, self.plan.order, seed=self.plan.training.seed))

    def stage(self, elastic: ElasticModel, original: ElasticModel | None, folder: Path, stage: Stage) -> None:
        """Train one stage."""
        self._finish(elastic, folder, stage, lambda: teacher_of(stage, elastic, original))

    def _finish(
        self, elastic: ElasticModel, folder: Path, stage: Stage | None, teacher: Callable[[], ElasticModel | None]
    ) -> None:
        """Train a stage, save what it gives and delete its checkpoints, or what of this has not been done yet."""
        if not self.world.on_first(lambda: complete(folder)):
            with held():  # what a stage has given is not thrown away by a stop between its end and its saving
                if stage is not None:
                    self._train(elastic, stage, teacher=teacher())
                save = partial(elastic.save_pretrained, folder, tokenizer=self.prepared.tokenizer)
                self.world.on_first(lambda: self.hooks.write(save))
        if stage is not None:
            self.world.on_first(lambda: delete_checkpoints(self.out / CHECKPOINTS, stage.name))
        self._take_weights(elastic, folder)

    def _take_weights(self, elastic: ElasticModel, folder: Path) -> None:
        """Continue from what is on disk, in the run that wrote it and in one that resumes alike."""
        saved = self.world.from_first(lambda: Shared(tensors=load(folder).state_dict()))
        elastic.model.load_state_dict(saved.tensors)

    def _newest_checkpoint(self, stage: Stage) -> Snapshot | None:
        def newest() -> Shared:
            snapshot = newest_checkpoint(self.out / CHECKPOINTS, stage.name)
            return Shared() if snapshot is None else Shared(asdict(snapshot.progress), snapshot.tensors)

        told = self.world.from_first(newest)
        return None if told.value is None else Snapshot(told.tensors, StageProgress(**told.value))

    def _train(self, elastic: ElasticModel, stage: Stage, *, teacher: ElasticModel | None) -> None:
        select, task, precision = self.prepared.select, self.prepared.task, self.plan.training.precision
        try:
            train_stage(
                elastic,
                stage,
                self.prepared.train,
                teacher=teacher,
                reduction=self.plan.recipe.reduction,
                training=self.plan.training,
                evaluate=selection_score(select, task, precision=precision, world=self.world),
                hooks=self.hooks,
                resume=partial(self._newest_checkpoint, stage),
                world=self.world,
            )
        except Stopped as stop:
            if not self.world.is_first:
                stop.saved = "rank 0 says what was saved"
            elif self.hooks.saved:
                stop.saved = f"{self.hooks.saved}; run the same command again to go on"
            raise


@contextmanager
def _opened_together(out: Path, job: Job, called: dict[str, Any], world: World, *, force: bool) -> Iterator[None]:
    """Open the run folder on rank 0, once all ranks are about to do the same; see `run_folder.opened`."""
    task, tokenizer = job.prepared.task, job.prepared.tokenizer
    identity = fingerprint(
        job.plan, task, roles=job.roles, elastic=job.elastic, tokenizer=tokenizer, world_size=world.size
    )
    world.agree("settings, data or model", json.dumps(identity))
    folder = opened(out, identity, called, needed=partial(disk_bytes, out, job.plan, job.elastic), force=force)
    with ExitStack() as stack:
        world.on_first(lambda: stack.enter_context(folder))
        yield
