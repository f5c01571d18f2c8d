"""Processes that `torchrun`, SLURM or a user started: one job for all, and one ending for all.

Each process runs the same `nnssl_train`. The first one chooses the place of the run, locks it and makes the job; the
others wait for this job, so that no process reads what another one is about to write. Only the usual variables are
read: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, wraps
from itertools import count
from typing import Any, TypeVar

from typing_extensions import ParamSpec

from nnssl.errors import EnvironmentProblem, NnsslError, OutOfMemory, StoppedBySignal, UsageError
from nnssl.system.resources import oom_kills
from nnssl.system.workers import portable_error

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL_SECONDS = 0.1
MEETING = timedelta(minutes=10)  # the machines of a cluster may start one after another
LOST_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")
LOST_WORDS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport", "NCCL")
RUN = "the same command with --c continues the run from its last checkpoint"
P = ParamSpec("P")
_GROUPS = count()
R = TypeVar("R")


@dataclass(frozen=True)
class Launched:
    """The place of this process among those of a launcher.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes on all machines, at least 2.
        local_rank: number of this process on its machine, from 0; the number of its GPU.
    """

    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def find(cls) -> Launched | None:
        """Return what the variables say, None where they speak of one process or of none.

        Raises:
            EnvironmentProblem: a variable is missing, or its value is impossible.
        """
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return None
        missing = [name for name in VARIABLES if not os.environ.get(name)]
        run = "torchrun --nproc_per_node N -m nnssl.cli.train ... sets them; without a launcher: unset RANK"
        if missing:
            raise EnvironmentProblem("variables of the launcher are missing", where=", ".join(missing), run=run)
        try:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            made = cls(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)))
        except ValueError:
            made = cls(0, 0, 0)
        if not 0 <= made.rank < made.world_size or not 0 <= made.local_rank <= made.rank:
            where = " ".join(f"{name}={os.environ.get(name, '')}" for name in (*VARIABLES[:2], "LOCAL_RANK"))
            raise EnvironmentProblem("the variables of the launcher contradict each other", where=where, run=run)
        return made


@cache
def meet(place: Launched) -> Any:  # noqa: ANN401 - torch's Store
    """Return the store in which the processes meet, once the first process is there.

    Raises:
        EnvironmentProblem: the first process cannot be reached.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        found = rendezvous("env://", place.rank, place.world_size, timeout=MEETING)
        return next(iter(found))[0]
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        why = str(error).splitlines()[0]
        run = "check MASTER_ADDR and MASTER_PORT, and that the first process runs"
        raise EnvironmentProblem("the processes cannot meet", where=where, why=why, run=run) from error


@contextlib.contextmanager
def process_group(place: Launched, backend: str) -> Iterator[None]:
    """Let torch's process group stand inside the block; a script may open several, one after another.

    Args:
        place: of this process.
        backend: `gloo` or `nccl`.
    """
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    store = PrefixStore(f"group {next(_GROUPS)}", meet(place))  # an earlier group has left its addresses
    distributed.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def is_follower() -> bool:
    """Return whether a launcher started this process, and another process is the first."""
    place = Launched.find()
    return place is not None and place.rank > 0


def refuse_num_gpus(num_gpus: int) -> None:
    """Refuse `-num_gpus` beside a launcher.

    Raises:
        UsageError: more than one process is asked for in a process of a launcher.
    """
    if num_gpus > 1 and Launched.find() is not None:
        raise UsageError(
            "-num_gpus starts processes, and a launcher has started them already",
            where=f"-num_gpus {num_gpus}",
            run="leave -num_gpus out; torchrun --nproc_per_node says how many processes train",
        )


@dataclass
class Share:
    """What the first process gives to the others in one call of `nnssl.train`.

    Attributes:
        store: in which the processes meet.
        number: of the call; a script may train several times.
    """

    store: Any
    number: int = field(default_factory=count().__next__)

    @property
    def key(self) -> str:
        """Name of the content in the store."""
        return f"nnssl job {self.number}"

    def give(self, content: object) -> None:
        """Give the others what they wait for; only the first content of a call counts."""
        if not self.store.check([self.key]):
            self.store.set(self.key, pickle.dumps(content))

    def wait(self) -> Any:  # noqa: ANN401 - what the first process gave
        """Return what the first process gives.

        Raises:
            NnsslError: the error that ended the first process.
            StoppedBySignal: the first process is gone.
        """
        try:
            while not self.store.check([self.key]):
                time.sleep(POLL_SECONDS)  # a blocking wait would hold signals back
            content = pickle.loads(self.store.get(self.key))
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise StoppedBySignal("the first process of the run is gone", why=why, run=RUN) from None
        if isinstance(content, NnsslError):
            raise content
        return content


_share: ContextVar[Share | None] = ContextVar("what the first process shares in this call", default=None)


def one_job(follow: Callable[[Any], R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function that a launcher calls in every process: only the first process runs it.

    Args:
        follow: what the other processes do with the content that the first process gives by `share`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            place = Launched.find()
            if place is None:
                return function(*arguments, **options)
            made = Share(meet(place))
            if place.rank:
                return follow(made.wait())
            token = _share.set(made)
            try:
                return function(*arguments, **options)
            except NnsslError as error:
                made.give(portable_error(error))
                raise
            finally:
                _share.reset(token)

        return call

    return decorate


def share(content: object) -> None:
    """Give content to the other processes of a launcher; without a launcher nothing happens."""
    made = _share.get()
    if made is not None:
        made.give(content)


@contextlib.contextmanager
def translate_lost_process() -> Iterator[None]:
    """Turn the error of a broken connection between the processes into the ending of a stopped run.

    Raises:
        OutOfMemory: another process ended, and the kernel killed a process for lack of memory meanwhile.
        StoppedBySignal: another process ended for another reason.
    """
    killed = oom_kills()
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(word in text for word in LOST_WORDS) and type(error).__name__ not in LOST_TYPES:
            raise
        now, what = oom_kills(), "another process of the run is gone"
        if now is not None and killed is not None and now > killed:
            why = "memory ran out: the kernel has killed processes for lack of memory"
            raise OutOfMemory(what, why=why, run=f"with more memory or fewer processes, {RUN}") from error
        raise StoppedBySignal(what, why=text.splitlines()[0][:200], run=RUN) from error
