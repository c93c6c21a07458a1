"""What a finished run has given: network, teacher, sweep, small models cut out of it."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dynabert.cut import described
from dynabert.deployed import measure_deployed, parity_of, random_arrays
from dynabert.description import Description
from dynabert.distributed import ALONE, World
from dynabert.elastic import ElasticModel, longest_input
from dynabert.engines import computing_engine, engine_of
from dynabert.engines.torch_engine import TorchSession
from dynabert.errors import ModelFileError, SettingError, StorageError
from dynabert.exported import Parity
from dynabert.extraction import Extracted, check_place, extract_folder
from dynabert.folders import CARD, verify_manifest
from dynabert.job import Prepared, pick_device
from dynabert.joining import Fingerprint, joined, measure_command
from dynabert.latency_model import LatencyModel
from dynabert.loading import load, load_tokenizer, read_shape
from dynabert.measure import LatencySettings, Progress, check_length, fingerprint_of, machine_of, measure, predict
from dynabert.measurement import Timing
from dynabert.model_files import CONFIG
from dynabert.rewire import Importance, reordered, rewire
from dynabert.run_card import origin_of, refresh_card, write_card
from dynabert.run_folder import locked
from dynabert.saved import Saved, is_run, run_file
from dynabert.subnet import Subnet
from dynabert.sweep import ENGINE_DTYPES, Sweep
from dynabert.timing import timings

SWEEP_FILE = "sweep.json"
PLAIN = ("torch", "fp32")
"""Engine and dtype that a sweep has if nothing else is said."""

IMPORTANCE_FILE = "importance.safetensors"

log = logging.getLogger("dynabert")


def measure_run(
    out: str | Path,
    *,
    subnets: tuple[Subnet, ...] | None = None,
    latency: LatencySettings | None = LatencySettings(),  # noqa: B008 (a frozen value)
    keep: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> Sweep:
    """Measure the result of a run on the validation rows, beside its teacher, and write that to the run folder.

    The file, see `sweep_file`, keeps the rows of other sizes if they were measured in the same way: settings, machine,
    weights, rows. If they were not, the whole grid replaces them and other sizes are not added; a warning says so.

    :param out: the run folder.
    :param subnets: what to measure; by default the whole grid.
    :param latency: how latency is measured; None leaves it out. With an engine or a dtype other than PyTorch in fp32,
        all that is measured is that of the deployed form, on the CPU, see `dynabert.deployed`.
    :param keep: whether it is written.
    :param progress: called with what is being done, how much of it is done, and out of how much.
    :param device: where to compute; by default the GPU if there is one.
    :return: what was measured now.
    :raises DataError: the rows are not those of the run any more.
    """
    out, device = Path(out), pick_device(device)
    subnets = None if subnets is None else tuple(dict.fromkeys(subnets))
    run_file(out)
    with locked(out) if keep else nullcontext():  # a folder that cannot be written is said before anything is measured
        elastic = load_result(out)
        prepared, sweep = _measured(out, elastic, subnets, latency, progress, device)
        if keep:
            _keep(out, sweep, partial(fingerprint_of, elastic, rows=tuple(prepared.validation)), whole=subnets is None)
    return sweep


def _measured(
    out: Path,
    elastic: ElasticModel,
    subnets: tuple[Subnet, ...] | None,
    latency: LatencySettings | None,
    progress: Progress | None,
    device: str,
) -> tuple[Prepared, Sweep]:
    """The rows of a run, and its sizes measured on them; the parameters are those of `measure_run`."""
    if latency is not None:
        check_length(elastic.model, latency)
        if (latency.engine, latency.dtype) != PLAIN:
            computing_engine(latency.engine, latency.dtype)  # what cannot be computed is said before the predictions
    prepared = Saved.of(out).rows(load_tokenizer(out / "elastic"))
    teacher = load_teacher(out, elastic)
    teacher.to(device)
    if latency is None or (latency.engine, latency.dtype) == PLAIN:
        elastic.to(device)
        sweep = beside_teacher(teacher, elastic, prepared, subnets=subnets, latency=latency, progress=progress)
    else:
        sweep = measure_deployed(
            elastic,
            prepared.validation,
            task=prepared.task,
            settings=latency,
            subnets=subnets,
            reference=predict(teacher.at(Subnet()), prepared.validation),
            calibration=prepared.select,
            progress=progress,
        )
    return prepared, sweep


def _keep(out: Path, sweep: Sweep, fingerprint: Fingerprint, *, whole: bool) -> None:
    """Write what was measured to the run folder, see `dynabert.joining.joined`."""
    latency = sweep.context.latency
    path = out / (SWEEP_FILE if latency is None else sweep_file(latency.engine, latency.dtype))
    is_plain = path.name == SWEEP_FILE  # which says that a run is done
    filed = joined(path, sweep, fingerprint, whole=whole, part_begins=not is_plain)
    if filed is not None:
        filed.to_json(path)
        try:
            own = filed if is_plain else _sweep_if_any(out)
            refresh_card(out, own, deployed_of(out, own))
        except (ModelFileError, StorageError) as error:
            log.warning("the card stays as it is: %s", error)


def command_to_add(out: str | Path, subnet: str, *, engine: str = PLAIN[0], dtype: str = PLAIN[1]) -> str:
    """The command that adds a size to what `dynabert pick` chooses from: measured as the others are."""
    path, latency = Path(out) / sweep_file(engine, dtype), LatencySettings(engine=engine, dtype=dtype)
    return measure_command(out, Sweep.from_json(path).context.latency if path.exists() else latency, subnets=subnet)


def sweep_file(engine: str, dtype: str) -> str:
    """The name of the file in a run folder that has what was measured with an engine and dtype."""
    return SWEEP_FILE if (engine, dtype) == PLAIN else f"sweep-{engine}-{dtype}.json"


def beside_teacher(
    teacher: ElasticModel,
    elastic: ElasticModel,
    prepared: Prepared,
    *,
    subnets: tuple[Subnet, ...] | None = None,
    latency: LatencySettings | None,
    progress: Progress | None,
    world: World = ALONE,
) -> Sweep:
    """The result of a run on its validation rows, compared with its teacher."""
    return measure(
        elastic,
        prepared.validation,
        task=prepared.task,
        subnets=subnets,
        reference=predict(teacher.at(Subnet()), prepared.validation, world=world),
        latency=latency,
        progress=progress,
        world=world,
    )


def load_teacher(out: str | Path, elastic: ElasticModel, *, rewired: bool = False) -> ElasticModel:
    """The teacher of a finished run.

    :param out: the run folder.
    :param elastic: its result, which is left as it is.
    :param rewired: with heads and neurons in the order that the run gave them: the same function, and what each Subnet
        was before any training.
    :raises ModelFileError: a part of the run that is missing or damaged.
    """
    out, teacher = Path(out), elastic.copy()
    teacher.model.load_state_dict(load(model_folder(out / "teacher")).state_dict())
    plan = Saved.of(out).plan
    if rewired and plan.order != "as-is":
        importance = Importance.load(out / IMPORTANCE_FILE)
        rewire(teacher, reordered(importance, plan.order, seed=plan.training.seed))
    return teacher


def load_result(out: str | Path) -> ElasticModel:
    """The elastic model of a finished run.

    :raises ModelFileError: not a run folder, or one whose training has not finished.
    """
    return ElasticModel.from_pretrained(finished(out))


def finished(out: str | Path) -> Path:
    """The elastic folder of a finished run.

    :raises ModelFileError: not a run folder, or one whose training has not finished, or a damaged one.
    """
    run_file(Path(out))
    if not complete(Path(out) / "elastic"):
        raise ModelFileError(f"{out} has not finished training; run its `dynabert train` command again to go on")
    return Path(out) / "elastic"


def load_sweep(out: str | Path, *, engine: str = PLAIN[0], dtype: str = PLAIN[1]) -> Sweep:
    """The sweep of a finished run.

    :param engine: that its rows were run by.
    :param dtype: of their products.
    :raises SettingError: an unknown engine, or a dtype that it does not have.
    :raises ModelFileError: not a run folder, or one that has not been measured so.
    """
    LatencySettings(engine=engine, dtype=dtype)  # which refuses what nothing can be measured with
    path = Path(out) / sweep_file(engine, dtype)
    if not path.exists():
        load_result(out)
        how = "" if (engine, dtype) == PLAIN else f" --engine {engine} --dtype {dtype}"
        raise ModelFileError(f"{out} has no {path.name} yet; run `dynabert measure {out}{how}`")
    return Sweep.from_json(path)


def check_machine(sweep: Sweep) -> None:
    """Refuse times and memory that were measured elsewhere.

    :raises SettingError: on another machine, or with other versions.
    """
    if differences := _differences_here(sweep):
        raise SettingError(
            f"this Sweep was measured elsewhere ({'; '.join(differences)}); measure again, or add --any-machine"
        )


def without_foreign_times(sweep: Sweep) -> Sweep:
    """A Sweep as it is, or where it was measured elsewhere without its times and memory, so that neither decides."""
    if not _differences_here(sweep):
        return sweep
    log.warning("times and memory of this Sweep are from elsewhere and left out; add --any-machine to trust them")
    costs = [replace(row.cost, latency_ms=None, timings=(), peak_bytes=None) for row in sweep.rows]
    rows = tuple(replace(row, cost=cost) for row, cost in zip(sweep.rows, costs, strict=True))
    return replace(sweep, rows=rows)


def _differences_here(sweep: Sweep) -> tuple[str, ...]:
    """In what this machine and its packages differ from those that a Sweep was measured with."""
    there, latency = sweep.context.machine, sweep.context.latency
    device = torch.device("cuda" if there.device != "cpu" and torch.cuda.is_available() else "cpu")
    name = ""
    if latency is not None and there.engine:
        try:
            name = f"{latency.engine} {engine_of(latency.engine, latency.dtype).version}"
        except SettingError:
            name = f"no {latency.engine}"
    return there.differences(machine_of(device, n_threads=there.n_threads, engine=name))


def sizes_of_run(out: str | Path) -> Description:
    """The sizes of a finished run, and what each keeps."""
    folder = finished(out)
    _, shape, _ = read_shape(folder)
    return described(folder, shape)


def latency_model_of(out: str | Path, sweep: Sweep) -> LatencyModel:
    """How long other sizes of a finished run take than those that were measured.

    :param out: the run folder.
    :param sweep: of its grid.
    :raises SettingError: no latency, or too few sizes.
    """
    return LatencyModel.fit(sweep, sizes_of_run(out))


def extract_run(out: str | Path, subnet: Subnet, folder: str | Path, *, pad_heads: bool = False) -> Extracted:
    """Write one Subnet of a run as a small model with its tokenizer; see `dynabert.extraction.extract_folder`.

    :param out: the run folder.
    :param subnet: which; those of the grid were trained, any other one works less well.
    :param folder: where to.
    :param pad_heads: see `ElasticModel.extract`: stock transformers loads it, but attention keeps its cost.
    :raises SettingError: a folder that holds something else than a model.
    """
    out = Path(out)
    elastic = finished(out)
    check_place(Path(folder), kept_by=CONFIG, outside=out, what="the run folder")
    return extract_folder(elastic, subnet, folder, pad_heads=pad_heads, sweep=_sweep_if_any(out), origin=origin_of(out))


@dataclass(frozen=True)
class Checked:
    """How a small model on disk compares with the run that it was cut out of."""

    parity: Parity
    timing: Timing


def rows_of(out: str | Path) -> Prepared:
    """The rows of a finished run, as it had them.

    :raises DataError: they have changed since.
    """
    return Saved.of(out).rows(load_tokenizer(Path(out) / "elastic"))


def check_extracted(out: str | Path, subnet: Subnet, folder: str | Path, *, rows: Prepared) -> Checked:
    """Load a model that `extract_run` wrote, and compare it with its run on the validation rows.

    :param out: the run folder.
    :param rows: of the run, see `rows_of`.
    :param subnet: which was extracted.
    :param folder: where it was written to.
    :return: and the latency of the loaded model, with the settings of `LatencySettings`, at fewer tokens where it takes
        no more.
    """
    elastic = load_result(out)
    settings = LatencySettings(seq=(min(LatencySettings().seq[0], longest_input(elastic.model)),))
    session = TorchSession(load(folder, head=None).eval(), n_threads=torch.get_num_threads())
    parity = parity_of(elastic, subnet, session, tuple(rows.validation), task=rows.task)
    ((timing,),) = timings({"": session}, random_arrays(elastic, settings), repeats=settings.repeats).values()
    return Checked(parity, timing)


def card_of_run(out: str | Path, *, force: bool = False) -> Path:
    """Write the model card of a finished run anew, see `dynabert.run_card.write_card`."""
    finished(out)
    own = _sweep_if_any(Path(out))
    return write_card(out, own, deployed_of(out, own), force=force)


def folder_to_push(source: str | Path) -> Path:
    """What is uploaded: of a run its elastic model, with a card; any other folder as it is.

    :raises ModelFileError: a run that has not finished.
    """
    source = Path(source)
    if not is_run(source):
        return source
    elastic = finished(source)
    if not (elastic / CARD).exists():
        own = _sweep_if_any(source)
        write_card(source, own, deployed_of(source, own))
    return elastic


def _sweep_if_any(out: Path) -> Sweep | None:
    return Sweep.from_json(out / SWEEP_FILE) if (out / SWEEP_FILE).exists() else None


def deployed_readers(out: str | Path, own: Sweep) -> dict[str, Callable[[], Sweep]]:
    """What reads each sweep of a deployed form that a run folder has, by engine and dtype.

    Each raises `dynabert.errors.ModelFileError` where its file is damaged or does not belong beside the run's sweep.

    :param own: the sweep of the run.
    """
    forms = [(engine, dtype) for engine, dtypes in ENGINE_DTYPES.items() for dtype in dtypes]
    there = [form for form in forms if form != PLAIN and (Path(out) / sweep_file(*form)).exists()]
    return {" ".join(form): partial(_read_deployed, Path(out), form, own) for form in there}


def deployed_of(out: str | Path, own: Sweep | None) -> tuple[Sweep, ...]:
    """What a card shows of the deployed forms of a run; a warning names each that cannot be shown.

    :param own: the sweep of the run; without one, nothing is shown beside it.
    """
    found = []
    for read in ({} if own is None else deployed_readers(out, own)).values():
        try:
            found.append(read())
        except ModelFileError as error:
            log.warning("not in the card: %s", error)
    return tuple(found)


def _read_deployed(out: Path, form: tuple[str, str], own: Sweep) -> Sweep:
    engine, dtype = form
    path = out / sweep_file(engine, dtype)
    sweep = Sweep.from_json(path)
    latency, context = sweep.context.latency, sweep.context
    again = f"run `dynabert measure {out} --engine {engine} --dtype {dtype}`"
    timed = latency is not None and all(len(row.cost.timings) == len(latency.shapes) for row in sweep.rows)
    if latency is None or not timed or (latency.engine, latency.dtype) != form:
        raise ModelFileError(f"{path} has no times of {engine} {dtype}; {again}")
    for name in ("task", "metric", "n_rows"):
        there, here = getattr(context, name), getattr(own.context, name)
        if there != here:
            raise ModelFileError(f"{path} has {name} {there}, {SWEEP_FILE} has {here}; {again}")
    if not math.isclose(context.reference, own.context.reference, abs_tol=1e-4):
        raise ModelFileError(f"{path} is of another training than {SWEEP_FILE}: its teacher differs; {again}")
    return sweep


def model_folder(folder: Path) -> Path:
    """The folder of a model in a run, which is never looked for on the hub.

    :raises ModelFileError: it is not there, or damaged.
    """
    if not complete(folder):
        raise ModelFileError(f"{folder} is missing; bring it back from a copy, or make what it belongs to once more")
    return folder


def complete(folder: Path) -> bool:
    """Whether a model folder is there; one that is there but damaged is an error, not a reason to train again."""
    if not folder.exists():
        return False
    verify_manifest(folder)
    return True
