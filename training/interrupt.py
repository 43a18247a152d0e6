"""A training that is asked to end: by Ctrl-C, by a scheduler, by whoever shuts the machine down."""

import signal

from ..errors import SamkdError


class Stopped(SamkdError):
    """Training was interrupted; the run folder holds a state to continue from."""

    exit_code = 130


class Interrupt:
    """Turns Ctrl-C and the signals of a scheduler into a flag, so that a step is never torn.

    A second Ctrl-C raises at once; a scheduler may send several signals, and gets its state.
    """

    requested = False
    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __enter__(self) -> "Interrupt":
        self._previous = {}
        try:
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._flag)
        except ValueError:  # not the main thread: leave signals alone
            pass
        return self

    def _flag(self, number: int, _frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
