"""Signals that end a run before its time."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

STOP_SIGNALS = ("SIGTERM", "SIGUSR1")  # clusters send one of these before the time of a job is up


@contextlib.contextmanager
def on_signals(handler: Callable[..., None], names: tuple[str, ...] = STOP_SIGNALS) -> Iterator[None]:
    """Call `handler` on these signals inside the block; only the main thread can, other threads change nothing.

    Args:
        handler: takes the signal's number and the frame, as `signal.signal` says.
        names: names of the signals; a name that the system does not know is left out.
    """
    before = {}
    with contextlib.suppress(ValueError):  # raised outside the main thread
        for name in names:
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
