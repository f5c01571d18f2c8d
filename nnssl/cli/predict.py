"""`nnssl_predict`: masks for a folder of scans; nnU-Net's flags, and bare `-i -o` where there is one trained model."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nnssl.cli.runtime import parser, print_json, run
from nnssl.errors import UsageError
from nnssl.system.resources import cpu_count


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `nnssl_predict`."""
    made = parser("nnssl_predict", "Segment a folder of scans with a trained model.")
    add = made.add_argument
    add("-i", required=True, help="folder of CASE_0000 files, or one such file; CASE suffices where it is one file")
    add("-o", required=True, help="folder for the masks (made if need be)")
    add("-d", help="data set, name or id; the model options are needed only where several models are trained")
    add("-tr", help="trainer")
    add("-p", help="plans")
    add("-c", help="configuration: 2d, 3d_fullres, …")
    add("-tag", help="tag of the run, default for the run without a tag; nnssl_runs lists all runs")
    runs = "model folder (DATASET/TRAINER__PLANS__CONFIGURATION[@TAG], also below nnUNet_results); several: an ensemble"
    add("-m", nargs="+", metavar="RUN", help=runs)
    add("-f", nargs="+", help="folds to average; default: all that are trained")
    add("-chk", default="checkpoint_final.pth", help="checkpoint file, default %(default)s")
    add("-step_size", type=float, default=0.5, help="step between patches as a share of the patch, default %(default)s")
    add("--disable_tta", action="store_true", help="no averaging over mirrored copies: faster, less accurate")
    add("--no_postprocessing", action="store_true", help="masks as the network gives them, without largest components")
    add("--save_probabilities", action="store_true", help="also write CASE.npz and CASE.pkl")
    add("--continue_prediction", "--c", action="store_true", help="keep masks that are there, predict the others")
    add("-npp", type=int, default=os.environ.get("nnUNet_npp"), help="threads that preprocess, default 1, on a GPU 3")
    add("-nps", type=int, default=os.environ.get("nnUNet_nps"), help="threads that export, default 1, on a GPU 3")
    add("-num_parts", type=int, default=1, help="number of calls that share the cases, default 1")
    add("-part_id", type=int, default=0, help="which of these calls this one is, from 0")
    add("-prev_stage_predictions", help="not supported: cascades are left to nnUNetv2_predict")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: the best one there is")
    add("--not_on_device", action="store_true", help="keep results off the GPU: for scans that do not fit")
    add("--disable_progress_bar", action="store_true", help="log lines instead of a bar")
    add("--verbose", action="store_true", help="show what nnU-Net prints")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.inference.api import DiskJob, ModelOptions, predict_files

    a, start = arguments, time.monotonic()
    if a.prev_stage_predictions:
        raise UsageError("cascades are not supported", where="-prev_stage_predictions", run="nnUNetv2_predict")
    bar = sys.stderr.isatty() and not a.disable_progress_bar
    job = DiskJob(
        [Path(a.i)], Path(a.o), a.save_probabilities, not a.continue_prediction, a.num_parts, a.part_id,
        readers=a.npp, writers=a.nps, threads=cpu_count(), progress="bar" if bar else "lines",
    )  # fmt: skip
    options = ModelOptions(
        model=a.m, dataset=a.d, trainer=a.tr, plans=a.p, configuration=a.c, tag=a.tag, folds=a.f, checkpoint=a.chk,
        step_size=a.step_size, mirroring=not a.disable_tta, device=a.device, on_device=not a.not_on_device,
        postprocessing=not a.no_postprocessing, verbose=a.verbose,
    )  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr if a.verbose else io.StringIO()):
        result, seconds = predict_files(job, options), time.monotonic() - start
    if a.json:
        print_json({**result.to_dict(), "seconds": round(seconds, 1)})
        return
    print("\n".join(result.lines))
    print(f"{result.predicted} of {len(result.masks)} masks predicted in {seconds:.1f} s: {result.folder}")
    labels = Path(a.i).with_name(Path(a.i).name.replace("images", "labels"))
    print(f"next: nnssl_evaluate {labels if labels != Path(a.i) and labels.is_dir() else 'LABELS'} {result.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
