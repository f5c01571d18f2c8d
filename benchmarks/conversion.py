"""Conversion of nrrd volumes: two workers against one, one worker against plain gzip of the same bytes, peak memory.

    python -m benchmarks.conversion [--cases 8] [--size 64 256 256] [--rounds 3]

The volumes are made: noise that was smoothed, which compresses like CT. Times are of writing alone and of the whole
command, which also reads, hashes and checks every file. The peak is that of a worker that checks and writes one case,
beyond what its libraries take, in volumes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from nnssl.cli.convert import main as convert
from nnssl.dataset_conversion.engine.case_files import WORK, write_case
from nnssl.dataset_conversion.engine.checks import Job, check_case
from nnssl.dataset_conversion.engine.table import CONVERTERS
from nnssl.dataset_conversion.folder import find_cases
from nnssl.system.workers import run_parallel


def make_download(folder: Path, cases: int, size: tuple[int, ...]) -> None:
    """Write labelled scans as uncompressed nrrd."""
    rng = np.random.default_rng(0)
    for case in range(cases):
        scan = (gaussian_filter(rng.standard_normal(size, dtype=np.float32), 1.0) * 2000).astype(np.int16)
        for part, voxels in (("images", scan), ("labels", (scan > 500).astype(np.uint8))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / part / f"case{case:02d}.nrrd"))


def gzip_seconds(download: Path) -> float:
    """Return the time that compressing the bytes of all files takes, at gzip's own level."""
    start = time.perf_counter()
    for file in sorted(download.rglob("*.nrrd")):
        zlib.compress(file.read_bytes(), 6)
    return time.perf_counter() - start


def job_of(download: Path, folder: Path) -> tuple[Job, dict]:
    """Return the job and the records of a download."""
    options = {option.name: option.default for option in CONVERTERS["folder"].options}
    records = find_cases(download, options).records
    return Job(download, folder, {}, False, {}), {record.case: record for record in records}


def command_seconds(download: Path, processes: int) -> float:
    """Return the time of the whole command."""
    shutil.rmtree(Path(os.environ["nnUNet_raw"]), ignore_errors=True)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert convert(["folder", "-i", str(download), "-d", "1", "-np", str(processes)]) == 0
    return time.perf_counter() - start


def writing_seconds(download: Path, folder: Path, processes: int) -> float:
    """Return the time of writing all cases."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / WORK).mkdir(parents=True)
    job, records = job_of(download, folder)
    tasks = {case: (record, check_case(record, job).entry) for case, record in records.items()}
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        run_parallel(partial(write_case, job=job), tasks, processes, "writing")
    return time.perf_counter() - start


def peak_volumes(download: Path, folder: Path) -> float:
    """Return how many volumes of memory checking and writing one case takes; called in a fresh process."""
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    job, records = job_of(download, folder)
    record = next(iter(records.values()))
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = memory_bytes("VmRSS")
    write_case((record, check_case(record, job).entry), job)
    return (memory_bytes("VmHWM") - before) / record.channels[0].path.stat().st_size


def memory_bytes(name: str) -> int:
    """Return a memory figure of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Print the medians as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=3, default=(64, 256, 256))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        download, folder = Path(scratch) / "download", Path(scratch) / "data_set"
        os.environ["nnUNet_raw"] = str(Path(scratch) / "raw")
        make_download(download, arguments.cases, tuple(arguments.size))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_volumes, (download, folder))
        rounds = [
            (
                gzip_seconds(download),
                *(writing_seconds(download, folder, processes) for processes in (1, 2)),
                *(command_seconds(download, processes) for processes in (1, 2)),
            )
            for _ in range(arguments.rounds)
        ]
    print(
        json.dumps(
            {
                "writing_one_to_two_workers": statistics.median(one / two for _, one, two, _, _ in rounds),
                "command_one_to_two_workers": statistics.median(one / two for _, _, _, one, two in rounds),
                "writing_to_gzip": statistics.median(writing / plain for plain, writing, _, _, _ in rounds),
                "command_to_gzip": statistics.median(command / plain for plain, _, _, command, _ in rounds),
                "peak_volumes": peak,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
