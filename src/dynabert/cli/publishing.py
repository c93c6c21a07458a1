"""The commands that hand a model on: its card, and the upload to the hub."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dynabert.cli.options import Json, Run, print_json


def card(
    run: Run,
    force: Annotated[bool, typer.Option("--force", help="Replace a card that was edited, too.")] = False,
    as_json: Json = False,
) -> None:
    """Write the model card of a run: RUN/elastic/README.md, with the measured sizes and how to load each."""
    from dynabert.results import card_of_run

    path = card_of_run(run, force=force)
    if as_json:
        print_json({"card": str(path)})
    else:
        typer.echo(f"written to {path}")


def push(
    model: Annotated[Path, typer.Argument(help="A run folder, or any model or exported folder.", show_default=False)],
    repository: Annotated[str, typer.Argument(help="Repository of the hub: me/my-model.", show_default=False)],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Visibility of a new repository; one that exists must have it already."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and upload nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Upload the elastic model of a run, or a model or exported folder, to the Hugging Face hub, with its card.

    Files of an earlier upload that the folder no longer has are deleted there; --dry-run asks nothing of the hub, so it
    does not know of them.
    """
    from dynabert.hub import push_folder
    from dynabert.results import folder_to_push

    upload = push_folder(folder_to_push(model), repository, private=private, dry_run=dry_run)
    if as_json:
        print_json({**asdict(upload), "files": dict(upload.files), "n_bytes": upload.n_bytes, "dry_run": dry_run})
        return
    for name, size in upload.files:
        typer.echo(f"{size:>15,}  {name}")
    for name in upload.deleted:
        typer.echo(f"        deleted  {name}")
    goes = "would go" if upload.url is None else "went"
    typer.echo(f"{upload.n_bytes:>15,}  bytes {goes} to {upload.url or upload.repository}")
