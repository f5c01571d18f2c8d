"""Three stages that overlap: read and preprocess the next case, run the network, export the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any, TypeVar

CaseT = TypeVar("CaseT")
PreparedT = TypeVar("PreparedT")
LogitsT = TypeVar("LogitsT")


def overlapped(
    cases: Iterable[CaseT],
    prepare: Callable[[CaseT], PreparedT],
    infer: Callable[[CaseT, PreparedT], LogitsT],
    export: Callable[[CaseT, PreparedT, LogitsT], None],
    *,
    readers: int = 1,
    writers: int = 1,
) -> Iterator[CaseT]:
    """Yield every case, in order, when its network pass is done; all exports are finished at the end.

    `infer` runs in the calling thread. At most `readers` prepared cases wait for it and at most `writers` wait for
    their export, so memory stays bounded. With 0 a stage runs in the calling thread too. The first error of any stage
    ends the run after the stages under way have ended.
    """
    with ExitStack() as stack:
        read = _submitter(stack, readers)
        write = _submitter(stack, writers)
        remaining = iter(cases)
        prepared = deque((case, read(prepare, case)) for case in islice(remaining, max(1, readers)))
        exports: deque[Future[None]] = deque()
        while prepared:
            case, future = prepared.popleft()
            ready = future.result()
            prepared.extend((later, read(prepare, later)) for later in islice(remaining, 1))
            logits = infer(case, ready)
            while len(exports) >= max(1, writers):
                exports.popleft().result()
            exports.append(write(export, case, ready, logits))
            del ready, logits, future
            yield case
        for pending in exports:
            pending.result()


def _submitter(stack: ExitStack, workers: int) -> Callable[..., Future[Any]]:
    if workers:
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool.submit

    def at_once(function: Callable[..., Any], *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    return at_once
