"""Ending a run at the next safe moment."""

import signal


class StopSignal:
    """While entered, notes SIGTERM and Ctrl-C in `received` instead of dying; a second one kills as usual."""

    def __enter__(self) -> "StopSignal":
        self.received = 0
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.received = number
        self.__exit__()
