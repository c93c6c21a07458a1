"""The exceptions a user can meet, and the exit code each one gives the command line.

Every message is one line: the value that was wrong, what is allowed, and what to do next.
"""

from signal import SIGINT, Signals


class DynabertError(ValueError):
    """Base of all errors that a user can cause or mend. Its subclasses differ only in the exit code."""

    exit_code = 2


class SettingError(DynabertError):
    """A setting, option or name is wrong: unknown value, out of range, or in conflict with another (exit code 2)."""

    exit_code = 2


class DataError(DynabertError):
    """A data file or data set cannot be used: missing column, unknown label, no rows (exit code 3)."""

    exit_code = 3


class ModelFileError(DynabertError):
    """A model, checkpoint or run folder cannot be used: missing, truncated, corrupt, or of an unknown kind (exit 3)."""

    exit_code = 3


class NonFiniteError(DynabertError):
    """Training met NaN or infinity and stopped before anything was saved (exit code 3)."""

    exit_code = 3


class StorageError(DynabertError):
    """Reading or writing failed after the retries: disk full, no permission, I/O error (exit code 74, EX_IOERR)."""

    exit_code = 74


class LostRankError(DynabertError):
    """Another process of a distributed job died, hangs or cannot be reached (exit code 74, as for I/O: try again)."""

    exit_code = 74


class FirstRankError(DynabertError):
    """Rank 0 of a distributed job met a user's mistake and says which; the other ranks stop with its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("rank 0 stopped; its own message says why")
        self.exit_code = exit_code


class Stopped(BaseException):
    """A signal asks the process to end (exit code 128 + its number: 143 for SIGTERM, 130 for Ctrl-C).

    No `Exception`, so that nothing on the way takes it for a failure of its own.

    :param signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.saved = ""
        """What of a running stage was saved; empty where there was nothing to save."""

    @property
    def exit_code(self) -> int:
        """What a shell shows for a process that this signal ended."""
        return 128 + self.signum

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signum == SIGINT else Signals(self.signum).name
        return f"stopped by {name}; {self.saved or 'nothing was under way that had to be saved'}"


def check_choices(settings: object) -> None:
    """Check every field of a settings class whose annotation is a `Literal` of names.

    :raises SettingError: a value outside it; the message names the field and the allowed ones.
    """
    from typing import Literal, get_args, get_origin, get_type_hints

    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            raise SettingError(one_of(name.replace("_", " "), getattr(settings, name), get_args(hint)))


def one_of(what: str, value: object, allowed: object, *, hint: str = "") -> str:
    """The line for a value outside a closed set, with a did-you-mean where one name is close.

    :param what: what the value is, for instance ``"task"``.
    :param value: the value as the user gave it.
    :param allowed: the names that are allowed, in the order to list them.
    :param hint: the next step, a sentence; empty for none.
    :return: one line for an exception's message.
    """
    from difflib import get_close_matches

    names = [str(name) for name in allowed]  # type: ignore[attr-defined]
    close = get_close_matches(str(value), names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {what} {value!r}{guess}; known: {', '.join(names)}" + (f". {hint}" if hint else "")
