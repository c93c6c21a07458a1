"""What a run folder says that it was made with, and where its rows are now."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.data import Roles
from dynabert.errors import DataError, ModelFileError
from dynabert.files import read_json, write_json
from dynabert.job import Prepared
from dynabert.plan import Plan, Source, plan_of
from dynabert.run_folder import RUN_FILE, locked
from dynabert.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT = "rows_at"
"""In `run.json`: where the rows are now, if not where they were."""


@dataclass(frozen=True)
class Saved:
    """What a run folder says that it was made with.

    :param model: the encoder: a folder, or a name on the hub.
    :param source: where its rows are now, see `moved`.
    :param made_from: where they were when it was made.
    :param plan: with the teacher decided on.
    :param data: fingerprint of its rows.
    :param encoder: digest of the encoder's weights.
    :param forced: how often it was made to go on with other settings than it had.
    """

    model: str
    source: Source
    made_from: Source
    plan: Plan
    data: str
    encoder: str
    forced: int = 0

    @classmethod
    def of(cls, out: str | Path) -> "Saved":
        """Read it from a run folder.

        :raises ModelFileError: not a run folder, or one of another version.
        """
        path = run_file(Path(out))
        saved = read_json(path)
        try:
            identity = saved["fingerprint"]
            made_from = Source.from_json(saved["source"])
            source = Source.from_json(saved[ROWS_AT]) if ROWS_AT in saved else made_from
            return cls(
                model=saved["model"],
                source=source,
                made_from=made_from,
                plan=plan_of(identity),
                data=identity["data"],
                encoder=identity["model"],
                forced=len(saved.get("forced", [])),
            )
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"{path} is not of this version ({error}); train again") from error

    def roles(self) -> tuple[Task, Roles]:
        """The task and the rows of the run, loaded from where they are.

        :raises DataError: they have changed since, or are not there.
        """
        if gone := self.source.missing():
            raise DataError(f"{gone}: the rows of this run are not there; where they are now: dynabert moved RUN DIR")
        task, roles = self.source.load()
        if roles.fingerprint != self.data:
            raise DataError("the rows that this run was made from have changed since; bring them back, or train again")
        return task, roles

    def rows(self, tokenizer: "PreTrainedTokenizerBase") -> Prepared:
        """The same in batches, as the run had them.

        :raises DataError: they have changed since.
        """
        return Prepared.of(*self.roles(), tokenizer, self.plan)


def moved(out: str | Path, folder: str | Path) -> Source:
    """Take note of where the rows of a run are now: on another machine, say.

    :param folder: that holds the files of its task, or its own files by the names that they had.
    :raises DataError: there are no such rows, or others than those of the run.
    :raises SettingError: its own files had one name, so that they cannot lie in one folder.
    """
    out = Path(out)
    saved = Saved.of(out)
    source = saved.made_from.moved_to(Path(folder))
    _, roles = source.load()
    if roles.fingerprint != saved.data:
        raise DataError(f"{folder} holds other rows than those that {out} was made from; give the folder of these")
    with locked(out):
        write_json(run_file(out), {**read_json(run_file(out)), ROWS_AT: source.to_json()})
    return source


def run_file(out: Path) -> Path:
    """The file that says what a run is made of.

    :raises ModelFileError: not a run folder.
    """
    if not is_run(out):
        raise ModelFileError(f"{out} is not a run folder (no {RUN_FILE}); give the --out of a `dynabert train`")
    return out / RUN_FILE


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run."""
    return (Path(folder) / RUN_FILE).exists()
