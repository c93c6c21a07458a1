"""Upload a folder, of a model or exported, to a repository of the Hugging Face hub: what would go, and sending it."""

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dynabert.card_parts import HERE
from dynabert.errors import DynabertError, ModelFileError, SettingError, StorageError
from dynabert.files import storage_errors
from dynabert.folders import CARD, MANIFEST, is_hidden, listed_in, verify_manifest
from dynabert.model_files import CONFIG, EXPORT_FILE, HUB_ID, one_line

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


@dataclass(frozen=True)
class Upload:
    """What was, or would be, uploaded.

    :param repository: its name on the hub.
    :param files: their names with sizes in bytes, in ascending order.
    :param url: the page of the repository; None where nothing was sent.
    :param deleted: files of an earlier upload that the folder no longer has, and the repository neither.
    """

    repository: str
    files: tuple[tuple[str, int], ...]
    url: str | None = None
    deleted: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)


def push_folder(
    folder: str | Path, repository: str, *, private: bool | None = None, dry_run: bool = False, message: str = ""
) -> Upload:
    """Upload a model folder, hidden files left out, to a repository, which is made if there is none.

    Of what an earlier upload left there, files that the folder no longer has are deleted, the card excepted; nothing
    else is.

    In the examples of its model card the name of the repository takes the place of that of the folder.

    :param folder: holds a model, or what `dynabert export` wrote; with a manifest it must be as the manifest says, its
        card excepted.
    :param repository: ``name`` or ``organisation/name``.
    :param private: whether others cannot see it: a new repository becomes so, and one that is there must be. By default
        a new one is as the account has it, and any other stays as it is.
    :param dry_run: say what would be uploaded, and ask nothing of the hub.
    :param message: of the commit.
    :raises ModelFileError: no model folder, or a damaged one.
    :raises SettingError: an impossible name, a repository that is there and not as `private` says, nobody is logged in,
        or the account may not write there.
    :raises StorageError: the hub cannot be reached, or fails.
    """
    if not re.fullmatch(HUB_ID, repository) or ".." in repository or "--" in repository:
        raise SettingError(f"{repository!r} is not the name of a repository; write it like me/my-model")
    folder = Path(folder)
    found = _files(folder)
    contents = {name: _content(path, name, repository) for name, path in found.items()}
    with storage_errors(folder):
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in contents.items()
        }
    upload = Upload(repository, tuple(sizes.items()))
    if dry_run:
        return upload
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
    return _send(additions, upload, private=private, message=message or "Upload with dynabert")


def _files(folder: Path) -> dict[str, Path]:
    """The files of a model folder by relative POSIX path in ascending order, hidden ones left out."""
    if not (folder / CONFIG).exists() and not (folder / EXPORT_FILE).exists():
        raise ModelFileError(
            f"{folder} is not a model folder (no {CONFIG}, no {EXPORT_FILE}); give one, an exported or a run folder"
        )
    if (folder / MANIFEST).exists():
        verify_manifest(folder)
    with storage_errors(folder):
        found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    seen = {name.as_posix(): path for name, path in found.items() if not is_hidden(name)}
    return dict(sorted(seen.items()))


def _content(path: Path, name: str, repository: str) -> Path | bytes:
    if name != CARD:
        return path
    with storage_errors(path):
        return path.read_bytes().replace(HERE.encode(), repository.encode())


def _send(additions: "list[CommitOperationAdd]", upload: Upload, *, private: bool | None, message: str) -> Upload:
    from huggingface_hub import CommitOperationDelete, HfApi, get_token

    api = HfApi()
    try:
        if get_token() is None:
            raise SettingError("nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN to a write token")
        url = api.create_repo(upload.repository, private=private, exist_ok=True)
        _check_visibility(api, url.repo_id, private)
        new = {addition.path_in_repo for addition in additions}
        gone = tuple(name for name in _published(api, url.repo_id) if name not in new)
        deletions = [CommitOperationDelete(name) for name in gone]
        api.create_commit(url.repo_id, [*additions, *deletions], commit_message=message)
    except DynabertError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and the operating system's errors
        raise _refusal(error, upload.repository) from error
    return Upload(url.repo_id, upload.files, str(url), gone)


def _check_visibility(api: "HfApi", repository: str, private: bool | None) -> None:
    """Refuse a repository that was there before, and that others can see, or not, against what was asked for."""
    there = None if private is None else api.repo_info(repository).private
    if there is not None and there != private:
        found, asked = ("private", "public") if there else ("public", "private")
        raise SettingError(
            f"{repository} is there already, {found} and not {asked}, so nothing was uploaded; change that in its "
            f"settings on the hub, or take another name"
        )


def _published(api: "HfApi", repository: str) -> list[str]:
    """What an earlier upload of a folder with a manifest left in a repository, and is still there."""
    there = set(api.list_repo_files(repository))
    if MANIFEST not in there:
        return []
    with TemporaryDirectory(prefix="dynabert-") as folder:
        api.hf_hub_download(repository, MANIFEST, local_dir=folder)
        try:
            return sorted(there.intersection((*listed_in(folder), MANIFEST)) - {CARD})
        except ModelFileError:  # a manifest of somebody else's
            return []


def _refusal(error: Exception, repository: str) -> DynabertError:
    """The line for what went wrong."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return SettingError("the hub is switched off by HF_HUB_OFFLINE; unset it to upload")
    said, status = one_line(error), None
    # What failed in one of several uploads stands behind another error; a ValueError says by itself what is wrong.
    for cause in (error, None if isinstance(error, ValueError) else error.__cause__):
        if isinstance(cause, HfHubHTTPError):
            said, status = one_line(Exception(cause.server_message or str(cause))), cause.response.status_code
    if status == 401:
        return SettingError(f"the hub does not accept this login ({said}); run `hf auth login` again")
    if status in (403, 404):
        return SettingError(f"this account may not write to {repository} ({said}); use a write token, or another name")
    if isinstance(error, ValueError) or (status is not None and status < 500):
        return SettingError(f"the hub refuses {repository} ({said}); mend that and push again")
    return StorageError(f"the hub could not be reached, or failed ({said}); check the network and push again")
