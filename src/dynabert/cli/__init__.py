"""The command line: one sub-command per verb. Each parses, calls, prints.

Nothing heavy is imported before a command runs, so that help and mistakes answer at once. Results go to standard
output, everything else to standard error; with --json standard output holds one object and nothing else.
"""

import logging
import sys
from typing import NoReturn

import typer

from dynabert.cli import publishing, sizes, studying, training
from dynabert.distributed import launched_rank, n_launched
from dynabert.errors import DynabertError, SettingError, Stopped, StorageError
from dynabert.failures import stop_signals

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

for verb in (
    training.train,
    sizes.measure,
    sizes.pick,
    sizes.search,
    sizes.extract,
    sizes.export,
    sizes.predict,
    publishing.card,
    publishing.push,
    sizes.report,
    studying.compare,
    studying.ablate,
    studying.exits,
    studying.attention,
    training.moved,
    training.demo,
):
    app.command()(verb)


@app.callback()
def check_launch(context: typer.Context) -> None:
    """Only training is shared among processes; any other command would be done by each of them."""
    if n_launched() > 1 and context.invoked_subcommand != "train":
        raise SettingError(
            f"{context.invoked_subcommand} runs in one process, and {n_launched()} were started; leave torchrun out"
        )


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
        context = getattr(error, "ctx", None)
        command = f"{context.info_name} " if context is not None and context.parent is not None else ""
        _fail(f"{error.format_message().rstrip('.')}; see dynabert {command}--help", 2)
    sys.exit(code if isinstance(code, int) else 0)
