"""Preprocessing of labelled cases, ours against stock nnU-Net's, as the ratio of wall-clock times in one run.

    python -m benchmarks.preprocessing DATASET CONFIGURATION [-np 2] [--rounds 5]

Both make the same cases from the same plans with the same number of processes, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable

from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

import nnssl
from nnssl.data.integrity import check_dataset
from nnssl.data.raw import read_raw_dataset
from nnssl.planning.preprocessing import preprocess
from nnssl.planning.scope import Scope
from nnssl.system.files import read_json


def seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call, its terminal output thrown away."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function()
    return time.perf_counter() - start


def main() -> None:
    """Print both times and stock / ours (above 1: ours is faster)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("-np", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    raw = read_raw_dataset(arguments.dataset)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["nnUNet_preprocessed"] = scratch
        plan = nnssl.plan(raw.name, (arguments.configuration,), budget="cpu", run_preprocessing=False)
        plans, cases = read_json(plan.plans_path), tuple(raw.labelled)
        facts = check_dataset(raw, arguments.np).facts
        scope = Scope(raw, plan.plans_path.parent, "", cases, cases, (), frozenset(), frozenset(), facts)
        number = int(raw.name[7:10])

        def ours() -> None:
            preprocess(scope, plans, arguments.configuration, arguments.np, clean=True)

        def stock() -> None:
            preprocess_dataset(number, plan.plans_name, (arguments.configuration,), (arguments.np,))

        pairs = [(seconds(stock), seconds(ours)) for _ in range(arguments.rounds)]
    print(f"{len(cases)} labelled cases, {arguments.np} processes")
    print(f"stock nnU-Net  {statistics.median(a for a, _ in pairs):7.2f} s")
    print(f"nnssl          {statistics.median(b for _, b in pairs):7.2f} s")
    ratios = [a / b for a, b in pairs]
    print(f"stock / nnssl  {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
