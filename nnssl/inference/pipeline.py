"""Three stages that overlap: prepare the next case, run the network on a case, export the case before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch

CaseT = TypeVar("CaseT")
PreparedT = TypeVar("PreparedT")
LogitsT = TypeVar("LogitsT")


def run_overlapped(
    cases: Iterable[CaseT],
    prepare: Callable[[CaseT], PreparedT],
    infer: Callable[[CaseT, PreparedT], LogitsT],
    export: Callable[[CaseT, PreparedT, LogitsT], None],
    *,
    readers: int = 1,
    writers: int = 1,
) -> Iterator[CaseT]:
    """Yield every case, in order, when the network has passed the case; all exports are finished at the end.

    `infer` runs in the calling thread. The numbers of cases that wait are bounded, so memory is bounded, too. The first
    error of any stage ends the run after the stages that have begun.

    Args:
        cases: cases in the order of the network.
        prepare: reads and preprocesses a case.
        infer: runs the network on a prepared case.
        export: writes the result of a case.
        readers: threads for `prepare`, and the number of prepared cases that may wait for the network; with 0 the
            calling thread prepares the cases.
        writers: threads for `export`, and the number of cases that may be in export while the network works; with 0
            the calling thread exports the cases.
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
    """Return the function that starts a call in one of `workers` threads, or runs it here where `workers` is 0."""
    if workers:
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool.submit

    def call_now(function: Callable[..., Any], *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    return call_now


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` CPU threads inside the block; None leaves the number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
