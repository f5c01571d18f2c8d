"""Run a command, and end it with all that it started when the process that asked for it is gone.

    python -m nnssl.sweep.guard PARENT WORD WORD ...

PARENT is the number of the process that asked. The guard leads a session of its own, ends as the command ends, and is
small enough to stand beside every run of a Ray worker: a worker that is killed cannot tidy up itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

POLL_SECONDS = 0.2
SAVE_SECONDS = 7.0  # for the state of a training after the end of its worker; what is left is killed


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code; a command that a signal ended ends the guard by the same signal.

    Args:
        words: number of the parent, then the command.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # the group gets this signal, and the command decides
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Ray's workers ignore it, and exit codes would read 0
    parent, command = int(words[0]), subprocess.Popen(words[1:])
    while command.poll() is None and os.getppid() == parent:
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(POLL_SECONDS)
    if os.getppid() != parent:
        os.killpg(0, signal.SIGTERM)
        end = time.monotonic() + SAVE_SECONDS
        while command.poll() is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        os.killpg(0, signal.SIGKILL)  # with the guard itself
    if command.returncode < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -command.returncode)
    return int(command.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
