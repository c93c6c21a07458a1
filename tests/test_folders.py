"""Folders and files appear whole or not at all, and damage is seen: failures injected at every system call."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from failing_calls import names, patch_nth, uses

from dynabert import files, folders
from dynabert.errors import ModelFileError, SettingError, StorageError
from dynabert.subnet import LayerSlice, Subnet

CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace")
"""The calls by which a folder is published; all are looked up in `os` when they are made."""

pytestmark = pytest.mark.usefixtures("pauses", "quick_fsync")


def fill(folder: Path, text: str) -> None:
    (folder / "tokens").mkdir()
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(text.encode() * 100)
    (folder / "tokens" / "vocab.txt").write_text("a\nb\n")


def publish(final: Path, text: str) -> Path:
    with folders.publish_folder(final) as folder:
        fill(folder, text)
    return final


# Publishing


def test_a_published_folder_is_whole_and_verifies(tmp_path: Path) -> None:
    final = publish(tmp_path / "deep" / "down" / "model", "one")
    folders.verify_manifest(final)
    manifest = json.loads((final / "MANIFEST.json").read_text())
    assert list(manifest["files"]) == ["config.json", "model.safetensors", "tokens/vocab.txt"]
    assert manifest["files"]["config.json"] == {"bytes": 3, "sha256": files.sha256_of(final / "config.json")}
    assert names(final.parent) == ["model"]


def test_a_published_folder_replaces_the_former_one_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    publish(tmp_path / "model", "one")
    publish(tmp_path / "model", "two")
    folders.verify_manifest(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "two"
    assert names(tmp_path) == ["model"]


def test_a_folder_that_is_not_as_published_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (publish(tmp_path / "model", "one") / "my notes").write_text("mine")
    publish(tmp_path / "model", "two")
    kept = next(tmp_path.glob("model.replaced-*"))
    assert (kept / "my notes").read_text() == "mine"
    assert (tmp_path / "model" / "config.json").read_text() == "two"
    assert f"kept the former model as {kept.name}" in caplog.text and "'my notes' is extra" in caplog.text


def test_a_card_may_be_written_and_changed_but_is_not_thrown_away(tmp_path: Path) -> None:
    final = publish(tmp_path / "model", "one")
    (final / "README.md").write_text("mine")
    folders.verify_manifest(final)
    with pytest.raises(ModelFileError, match=r"README\.md.*is extra"):
        folders.verify_manifest(final, edited=False)
    (final / "tokens" / "README.md").write_text("not the card")
    with pytest.raises(ModelFileError, match=r"tokens/README\.md.*is extra"):
        folders.verify_manifest(final)
    (final / "tokens" / "README.md").unlink()
    publish(tmp_path / "model", "two")
    assert (next(tmp_path.glob("model.replaced-*")) / "README.md").read_text() == "mine"
    assert not (tmp_path / "model" / "README.md").exists()


def test_hidden_files_of_other_programs_are_passed_over_but_not_thrown_away(tmp_path: Path) -> None:
    final = publish(tmp_path / "model", "one")
    (final / ".DS_Store").write_text("of a desktop")
    (final / "tokens" / ".nfs0123").symlink_to(final / "nowhere")
    (final / ".ipynb_checkpoints").mkdir()
    (final / ".ipynb_checkpoints" / "config-checkpoint.json").write_text("mine")
    folders.verify_manifest(final)
    with pytest.raises(ModelFileError, match=r"'\.ipynb_checkpoints/config-checkpoint\.json' is extra"):
        (final / "tokens" / ".nfs0123").unlink()
        (final / ".DS_Store").unlink()
        folders.verify_manifest(final, edited=False)
    publish(tmp_path / "model", "two")
    (kept,) = tmp_path.glob("model.replaced-*")
    assert (kept / ".ipynb_checkpoints" / "config-checkpoint.json").read_text() == "mine"


def test_hidden_files_that_are_listed_count(tmp_path: Path) -> None:
    (tmp_path / ".rules").mkdir()
    (tmp_path / ".rules" / "a").write_text("x")
    folders.write_manifest(tmp_path)
    folders.verify_manifest(tmp_path)
    (tmp_path / ".rules" / "a").write_text("y")
    with pytest.raises(ModelFileError, match=r"'\.rules/a' is corrupt"):
        folders.verify_manifest(tmp_path)
    (tmp_path / ".rules" / "a").unlink()
    with pytest.raises(ModelFileError, match=r"'\.rules/a' is missing"):
        folders.verify_manifest(tmp_path)


def test_long_names_make_short_file_names_that_differ(tmp_path: Path) -> None:
    assert folders.file_name_of("w0.5-d0.75") == "w0.5-d0.75" and folders.file_name_of("x" * 100) == "x" * 100
    long = [Subnet.of_layers(*(LayerSlice(layer, 12, n) for layer in range(24))).name for n in (3072, 1536)]
    assert all(len(name) > 255 for name in long)
    short = [folders.file_name_of(name) for name in long]
    assert len(set(short)) == 2 and [len(name) for name in short] == [100, 100]
    assert all(name.startswith(whole[:80]) for name, whole in zip(short, long, strict=True))
    files.atomic_write_text(tmp_path / f"{short[0]}.safetensors", "can be written")


def test_a_folder_behind_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    publish(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    publish(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "config.json").read_text() == "two"


def test_places_that_cannot_be_replaced_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused = {tmp_path / "file": "is a file", tmp_path: "working directory", Path("."): "working directory"}
    for place, reason in (refused | {Path("/"): "mount point"}).items():
        with pytest.raises(SettingError, match=reason):
            publish(place, "one")
    assert names(tmp_path) == ["file", "here"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(errno.ENOENT, "gone")])
def test_an_error_in_the_block_comes_through_and_leaves_nothing(tmp_path: Path, error: Any) -> None:
    publish(tmp_path / "model", "one")
    with (
        pytest.raises(type(error) if isinstance(error, OSError) else error),
        folders.publish_folder(tmp_path / "model") as folder,
    ):
        fill(folder, "two")
        raise error
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "config.json").read_text() == "one"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_in_the_block_is_one_line(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(StorageError) as caught, folders.publish_folder(tmp_path / "model"):
        raise error
    assert caught.value.exit_code == 74 and "\n" not in str(caught.value)
    assert "No space left on device (ENOSPC); free some space" in str(caught.value) and names(tmp_path) == []


def test_a_failure_of_another_file_names_that_file(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot read or write .*/source: .*EACCES"),
        folders.publish_folder(tmp_path / "m"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "source"))
    with (
        pytest.raises(StorageError, match=r"cannot read or write .*/m: "),
        folders.publish_folder(tmp_path / "m") as to,
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(to / "config.json"))
    assert names(tmp_path) == []


def test_a_link_is_not_published(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelFileError, match="'link' is not a plain file"),
        folders.publish_folder(tmp_path / "m") as to,
    ):
        (to / "link").symlink_to("/etc/hostname")
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("ever_after", [False, True])
def test_no_failure_harms_the_former_folder(tmp_path: Path, call: str, code: int, ever_after: bool) -> None:
    total = uses(call, lambda: publish(publish(tmp_path / "count", "one"), "two"))
    assert total > 0
    for nth in range(1, total + 1):
        parent = tmp_path / str(nth)
        parent.mkdir()
        publish(parent / "model", "one")
        with pytest.MonkeyPatch.context() as patch:
            patch_nth(patch, call, nth, code, ever_after=ever_after)
            try:
                publish(parent / "model", "two")
            except StorageError as error:
                assert errno.errorcode[code] in str(error) and "\n" not in str(error)
                arrived = ["one", "two"]  # "two" where only recording the rename on disk failed
            except OSError:  # `fill` met it in a mkdir or open of its own: nothing of ours to translate
                pytest.fail("an OSError reached the user")
            else:
                arrived = ["two"]
        folders.clean_temporary(parent)
        folders.verify_manifest(parent / "model")
        assert (parent / "model" / "config.json").read_text() in arrived
        assert names(parent) == ["model"]


def test_one_transient_failure_is_cured(tmp_path: Path, pauses: list[float]) -> None:
    for call in ("mkdir", "rename", "replace"):
        with pytest.MonkeyPatch.context() as patch:
            patch_nth(patch, call, 1, errno.ESTALE)
            folders.verify_manifest(publish(tmp_path / call, "one"))
    assert pauses == [files.PAUSES_S[0]] * 3


def test_a_failed_fsync_is_not_repeated_on_the_same_data(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch_nth(patch, "fsync", 1, errno.EIO)
        with pytest.raises(StorageError, match="EIO"):
            publish(tmp_path / "model", "one")
    assert pauses == []


def test_everything_is_on_disk_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "model", "one")
    events: list[tuple[str, str]] = []
    opened: dict[int, str] = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def shown(path: Any) -> str:
        return os.path.relpath(path, tmp_path) if os.path.isabs(path) else str(path)

    def recording_open(path: Any, *args: Any, **settings: Any) -> int:
        descriptor = real_open(path, *args, **settings)
        opened[descriptor] = shown(path)
        return descriptor

    def recording_rename(source: Any, target: Any) -> None:
        real_rename(source, target)
        events.append((f"rename {shown(source)[:5]}", shown(target)))

    monkeypatch.setattr(os, "open", recording_open)
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("fsync", opened[fd])), real_fsync(fd))[1])
    monkeypatch.setattr(os, "rename", recording_rename)
    monkeypatch.setattr(folders.shutil, "rmtree", lambda path, **_: events.append(("delete", shown(path)[:5])))
    with folders.publish_folder(tmp_path / "model") as folder:
        fill(folder, "two")
    new = folder.name
    step = {event: index for index, event in enumerate(events)}
    synced = [step["fsync", f"{new}/{name}"] for name in ("config.json", "model.safetensors", "tokens/vocab.txt")]
    manifest = next(index for (_, path), index in step.items() if ".tmp-MANIFEST.json" in path)
    arrival = step["rename .tmp-", "model"]
    order = [max(synced), manifest, step["fsync", new], arrival, step["fsync", "."], step["delete", ".tmp-"]]
    assert order == sorted(order)
    assert manifest < step["fsync", f"{new}/tokens"] < step["fsync", new]
    assert step["fsync", "."] > arrival, "the parent is synced after the rename"


KILLER = """
import os, signal, sys
from pathlib import Path
from dynabert import folders

left = int(sys.argv[2])

def counted(real):
    def call(*args, **settings):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **settings)
    return call

for name in ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
with folders.publish_folder(sys.argv[1]) as folder:
    (folder / "config.json").write_text("two")
"""


def test_a_kill_at_any_call_leaves_the_old_folder_or_the_new(tmp_path: Path) -> None:
    seen, nth, code = set(), 0, -9
    while code == -9:
        parent = tmp_path / str(nth)
        with folders.publish_folder(parent / "model") as folder:
            (folder / "config.json").write_text("one")
        code = subprocess.run([sys.executable, "-c", KILLER, parent / "model", str(nth)], check=False).returncode
        folders.clean_temporary(parent)
        folders.verify_manifest(parent / "model")
        assert names(parent) == ["model"]
        seen.add((code, (parent / "model" / "config.json").read_text()))
        nth += 1
    assert code == 0 and nth > 10, f"{nth} runs, the last ended with {code}"
    assert seen == {(-9, "one"), (-9, "two"), (0, "two")}


def test_a_file_size_limit_leaves_the_former_folder(tmp_path: Path) -> None:
    publish(tmp_path / "model", "one")
    code = (
        "import resource, sys\nfrom dynabert import folders\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with folders.publish_folder(sys.argv[1]) as folder:\n    (folder / 'config.json').write_bytes(b'2' * 5000)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], check=False, capture_output=True, text=True)
    assert ran.returncode == 1 and "StorageError: " in ran.stderr.splitlines()[-1] and "EFBIG" in ran.stderr
    folders.verify_manifest(tmp_path / "model")
    assert names(tmp_path) == ["model"]


# Manifests


def test_every_bit_flip_is_seen(tmp_path: Path) -> None:
    final = publish(tmp_path / "model", "one")
    rng = random.Random(0)
    for path in [path for path in final.rglob("*") if path.is_file()] * 150:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(ModelFileError) as caught:
            folders.verify_manifest(final)
        assert "\n" not in str(caught.value) and str(final) in str(caught.value)
        path.write_bytes(good)
    folders.verify_manifest(final)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokens/vocab.txt", "MANIFEST.json"])
def test_every_truncation_is_seen(tmp_path: Path, name: str, keep: float) -> None:
    path = publish(tmp_path / "model", "one") / name
    os.truncate(path, int(keep * path.stat().st_size))
    reason = "MANIFEST.json is not valid JSON" if name == "MANIFEST.json" else f"'{name}' is truncated"
    with pytest.raises(ModelFileError, match=reason):
        folders.verify_manifest(tmp_path / "model")


def damage(folder: Path, kind: str) -> None:
    model = folder / "model.safetensors"
    match kind:
        case "missing":
            model.unlink()
        case "extra":
            (folder / "tokens" / "more.txt").touch()
        case "grown":
            model.write_bytes(model.read_bytes() + b"\0")
        case "zeroed":
            model.write_bytes(bytes(model.stat().st_size))
        case "linked":
            model.rename(folder.parent / "elsewhere")
            model.symlink_to(folder.parent / "elsewhere")
        case "pipe":
            model.unlink()
            os.mkfifo(model)
        case "no manifest":
            (folder / "MANIFEST.json").unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "'model.safetensors' is missing"),
        ("extra", "'tokens/more.txt' is extra"),
        ("grown", "'model.safetensors' has grown: 301 of 300 bytes"),
        ("zeroed", "'model.safetensors' is corrupt: its sha256 differs"),
        ("linked", "'model.safetensors' is not a plain file"),
        ("pipe", "'model.safetensors' is not a plain file"),
        ("no manifest", "MANIFEST.json is missing"),
    ],
)
def test_damage_is_named(tmp_path: Path, kind: str, message: str) -> None:
    final = publish(tmp_path / "model", "one")
    damage(final, kind)
    with pytest.raises(ModelFileError, match=message) as caught:
        folders.verify_manifest(final)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        {"format_version": 1},
        {"format_version": 0, "files": {}},
        {"format_version": 1, "files": {}, "more": 1},
        {"format_version": 1, "files": []},
        {"format_version": 1, "files": {"a": {}}},
        {"format_version": 1, "files": {"a": {"bytes": "1", "sha256": ""}}},
        {"format_version": 1, "files": {"a": {"bytes": 1, "sha256": "", "more": 1}}},
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, manifest: Any) -> None:
    files.write_json(tmp_path / "MANIFEST.json", manifest)
    with pytest.raises(ModelFileError, match="is not a manifest"):
        folders.verify_manifest(tmp_path)


def test_a_newer_manifest_says_update(tmp_path: Path) -> None:
    files.write_json(tmp_path / "MANIFEST.json", {"format_version": 2, "files": {}})
    with pytest.raises(ModelFileError, match="format_version 2, newer than 1; update dynabert"):
        folders.verify_manifest(tmp_path)


def test_a_manifest_can_be_written_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    folders.write_manifest(tmp_path)
    folders.verify_manifest(tmp_path)
    with pytest.raises(ModelFileError, match="is not a folder"):
        folders.verify_manifest(tmp_path / "a")


# The newest that verifies


def test_the_newest_is_by_number(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        publish(tmp_path / f"step-{number}", "one")
    (tmp_path / "step-11").touch()
    (tmp_path / "step-12.replaced-0").mkdir()
    assert folders.newest_verified(tmp_path, "step-") == tmp_path / "step-10"


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, kind in ((1, ""), (2, "zeroed"), (3, "no manifest")):
        damage(publish(tmp_path / f"step-{number}", "one"), kind)
    assert folders.newest_verified(tmp_path, "step-") == tmp_path / "step-1"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and all(text.endswith("; using step-1 instead") for text in messages)
    assert "step-3" in messages[0] and "'model.safetensors' is corrupt" in messages[1]
    assert {record.name for record in caplog.records} == {"dynabert"}


def test_no_verified_folder_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert folders.newest_verified(tmp_path / "nowhere", "step-") is None and not caplog.records
    damage(publish(tmp_path / "step-1", "one"), "missing")
    assert folders.newest_verified(tmp_path, "step-") is None
    assert "and no other step-* verifies" in caplog.text


# Leftovers


def test_leftovers_go_and_others_stay(tmp_path: Path) -> None:
    publish(tmp_path / "model", "one")
    (tmp_path / ".tmp-model-0123abcd" / "deep").mkdir(parents=True)
    (tmp_path / ".tmp-state.json-0123abcd").touch()
    for stranger in (".tmp-mine", ".old-mine", "tmp-model-0123abcd"):
        (tmp_path / stranger).mkdir()
    folders.clean_temporary(tmp_path)
    folders.clean_temporary(tmp_path / "nowhere")
    assert names(tmp_path) == [".old-mine", ".tmp-mine", "model", "tmp-model-0123abcd"]


def test_a_folder_moved_aside_is_put_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(tmp_path / "model", "one").rename(tmp_path / ".old-model-0123abcd")
    folders.clean_temporary(tmp_path)
    folders.verify_manifest(tmp_path / "model")
    assert names(tmp_path) == ["model"] and "put back" in caplog.text


def test_a_failed_last_rename_puts_the_former_folder_back_at_once(tmp_path: Path) -> None:
    publish(tmp_path / "model", "one")
    with pytest.MonkeyPatch.context() as patch:
        patch_nth(patch, "rename", 2, errno.ENOSPC)
        with pytest.raises(StorageError, match="ENOSPC"):
            publish(tmp_path / "model", "two")
    folders.verify_manifest(tmp_path / "model")
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "config.json").read_text() == "one"


def test_a_folder_moved_aside_outlives_a_failed_save(tmp_path: Path) -> None:
    publish(tmp_path / "model", "one").rename(tmp_path / ".old-model-0123abcd")
    with pytest.raises(RuntimeError), folders.publish_folder(tmp_path / "model"):
        raise RuntimeError
    folders.verify_manifest(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_a_folder_moved_aside_goes_once_its_successor_stands(tmp_path: Path) -> None:
    publish(tmp_path / "model", "one").rename(tmp_path / ".old-model-0123abcd")
    publish(tmp_path / "other", "two").rename(tmp_path / "model")
    publish(tmp_path / "neighbour", "three")
    assert ".old-model-0123abcd" in names(tmp_path), "publishing settles its own name alone"
    folders.clean_temporary(tmp_path)
    assert names(tmp_path) == ["model", "neighbour"]
    assert (tmp_path / "model" / "config.json").read_text() == "two"


def test_a_folder_without_fsync_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def no_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    folders.verify_manifest(publish(tmp_path / "model", "one"))


def test_files_and_folders_do_not_import_torch() -> None:
    code = "import sys, dynabert.folders; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_published_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    with folders.publish_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_bytes(b"1")
        (temporary / "weights").chmod(0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 2 and len(set(modes.values())) == 1
