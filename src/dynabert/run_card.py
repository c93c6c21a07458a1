"""The model card of a run: from what its folder says, without the paths that are in there."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynabert.card_parts import Origin, is_unedited
from dynabert.cut import described
from dynabert.errors import ModelFileError, SettingError
from dynabert.files import atomic_write_text, read_json, storage_errors
from dynabert.folders import CARD
from dynabert.loading import read_shape
from dynabert.measurement import Machine
from dynabert.model_card import elastic_card
from dynabert.modeling import auto_class
from dynabert.plan import Plan, plan_of
from dynabert.run_folder import MACHINE, RUN_FILE
from dynabert.sweep import Sweep
from dynabert.tasks import TASKS

BASE, ROWS = "base_model", "rows"
"""What run.json calls the hub name of the encoder, and the numbers of rows by role."""

log = logging.getLogger("dynabert")


def origin_of(out: Path) -> Origin:
    """What a run was made from, as far as others may know it.

    :param out: the run folder.
    :raises ModelFileError: a `run.json` of another version.
    """
    path = out / RUN_FILE
    saved = read_json(path)
    try:
        identity = saved["fingerprint"]
        plan, task = plan_of(identity), identity["task"]
        known = TASKS.get(task)
        return Origin(
            task=task,
            dataset=known.hub if known else None,
            language="en" if known else None,  # all tasks of the table are English
            base_model=saved.get(BASE),
            rows=_rows(saved.get(ROWS) or {}, identity["data"]),
            recipe=_recipe(plan),
            max_length=plan.batching.max_length,
            machine=Machine(**saved[MACHINE]) if saved.get(MACHINE) else None,
        )
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{path} is not of this version ({error}); train again") from error


def _rows(counted: dict[str, Any], fingerprint: str) -> str:
    numbers = ", ".join(f"{number:,} {role}" for role, number in counted.items())
    return f"rows: {numbers + '; ' if numbers else ''}fingerprint `{fingerprint}`"


def _recipe(plan: Plan) -> str:
    stages = "; ".join(f"{stage.name}, epochs {stage.epochs:g}, learning rate {stage.lr:g}" for stage in plan.stages)
    return f"`{plan.recipe.name}` ({stages}; {plan.training.precision}), seed {plan.training.seed}"


def write_card(out: str | Path, sweep: Sweep | None, deployed: Sequence[Sweep] = (), *, force: bool = False) -> Path:
    """Write the card of a finished run, ``OUT/elastic/README.md``, anew.

    :param out: the run folder.
    :param sweep: what was measured of it.
    :param deployed: what was measured of the forms in which engines run it.
    :param force: replace a card that somebody has edited, too.
    :return: the card's path.
    :raises SettingError: a card that was edited, unless forced; it stays as it is.
    """
    out = Path(out)
    folder = out / "elastic"
    path = folder / CARD
    family, shape, head = read_shape(folder)
    sizes, loader = described(folder, shape), auto_class(head)
    origin = origin_of(out)
    split = TASKS[origin.task].validations[0] if origin.task in TASKS else "validation"
    card = elastic_card(sizes, family, auto_class=loader, sweep=sweep, deployed=deployed, origin=origin, split=split)
    with storage_errors(path):
        former = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if former and not is_unedited(former) and not force:
        raise SettingError(f"{path} was edited and stays as it is; replace it with `dynabert card {out} --force`")
    atomic_write_text(path, card)
    return path


def refresh_card(out: str | Path, sweep: Sweep | None, deployed: Sequence[Sweep] = ()) -> None:
    """`write_card`, but a card that was edited is left alone, and said so."""
    try:
        write_card(out, sweep, deployed)
    except SettingError as error:
        log.warning("%s", error)
