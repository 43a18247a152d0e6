"""What samkd raises for its users. Each error carries the exit code that the command line ends with."""

from collections.abc import Iterator
from contextlib import contextmanager


class SamkdError(ValueError):
    """A fault the user can act on. The message says what, where, what was expected and what to do next."""

    exit_code = 1


class UsageError(SamkdError):
    """Wrong options or a wrong config."""

    exit_code = 2


class BadInputError(SamkdError):
    """A scan, mask, dataset or run that cannot be used as it is."""

    exit_code = 3


class OutputError(BadInputError):
    """A file or folder that cannot be written."""


class IntegrityError(SamkdError):
    """A file whose checksum or signature does not match, or that cannot be what it says it is."""

    exit_code = 4


class MissingExtraError(SamkdError):
    """An optional dependency is not installed; the message holds the install command."""

    exit_code = 5


class GateRefusedError(SamkdError):
    """A converted model lost more than was allowed; nothing was packed."""

    exit_code = 6


@contextmanager
def translated(place: object, what: str, fault: type[SamkdError] = BadInputError) -> Iterator[None]:
    """Whatever a library throws inside, of any class, becomes a `fault`: the place, `what` is wrong there, its words.

    For calls of libraries only: each has exceptions of its own, and lets through those of what it stands on. Too little
    memory is told as that, whatever is being done.
    """
    try:
        yield
    except SamkdError:
        raise
    except MemoryError as error:
        raise BadInputError(f"{place}: does not fit into memory. Use a machine with more of it.") from error
    except Exception as error:
        words = " ".join(str(error).split()) or "no words"
        raise fault(f"{place}: {what} ({type(error).__name__}: {words[:500]}).") from error


@contextmanager
def about(place: object) -> Iterator[None]:
    """A BadInputError raised inside that does not name `place` gets it in front: what is wrong, and where."""
    try:
        yield
    except BadInputError as error:
        if str(place) in str(error):
            raise
        raise type(error)(f"{place}: {error}") from error
