"""nnssl_train: train one fold of one configuration with one method."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run
from nnssl.registry import DEFAULT_METHOD
from nnssl.training.tracking import TRACKERS


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; nnU-Net's flags keep their names and meaning."""
    made = parser("nnssl_train", "Train one fold on labelled and unlabelled scans; nnU-Net's flags keep their meaning.")
    add = made.add_argument
    add("dataset_name_or_id", help="data set, 27 or Dataset027_ACDC")
    add("configuration", help="2d, 3d_fullres or 3d_lowres")
    add("fold", help="fold number, or all")
    add("-tr", default=DEFAULT_METHOD, metavar="TRAINER", help="method, see nnssl_methods (default: %(default)s)")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans, without @lab7 and the like (default: %(default)s)")
    add("-labelled", "-labeled", metavar="N", help="label budget: 7 patients or 10%%; the other labels stay unread")
    add("-pick", type=int, default=0, metavar="K", help="another seeded choice of the labelled patients")
    add("-protocol", metavar="NAME", help="published protocol, acdc-7: its lists and its label budget")
    add("-setting", metavar="SETTING", help="domains of dataset.json: umda:SOURCE:TARGET ('umda:A->B') or mdg:TARGET")
    add("-num_iterations", type=int, metavar="N", help="length; all schedules are stretched (default: 250000)")
    add("-seed", type=int, metavar="N", help="seed of everything (default: 0)")
    add("-tag", metavar="NAME", help="name of the run (default: made from what differs from the defaults)")
    add("--overwrite", action="store_true", help="replace the run of the same name")
    add("-network", metavar="NAME", help="short for --set network=NAME: vnet, unet_bcp, mamba_unet:width=24, …")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="settings of the method")
    add("--bf16", action="store_true", help="calculate in bfloat16; on a CPU with AVX512-BF16 or AMX about 2 x faster")
    add("-device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="default: cuda where there is one")
    add("-cache", metavar="SIZE", help="hold decoded cases in memory, up to 4GB for example; the batches are the same")
    add("-num_gpus", type=int, default=1, metavar="N", help="distributed training on one machine")
    add("-pretrained_weights", metavar="FILE", help="nnU-Net checkpoint to start from")
    add("-start_from", metavar="RUN", help="finished run, fold or checkpoint whose weights the method starts from")
    add("-pseudo_labels", metavar="DIR", help="masks of unlabelled scans, made elsewhere, that the method learns from")
    add("-track", nargs="+", default=[], choices=TRACKERS, help="also log to TensorBoard, MLflow or W&B (offline)")
    add("--c", action="store_true", help="continue from the last checkpoint")
    add("--val", action="store_true", help="only validate a finished run")
    add("--val_best", action="store_true", help="validate checkpoint_best.pth instead of the last weights")
    add("--npz", action="store_true", help="also write the validation cases' probabilities")
    add("--no_val", action="store_true", help="skip the validation at the end")
    add("--disable_checkpointing", action="store_true", help="write no checkpoint")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Train as the arguments say and print what to run next."""
    from nnssl.data.splits import parse_fold
    from nnssl.training.api import train
    from nnssl.training.launched import is_follower

    same = "track labelled pick protocol setting num_iterations seed tag overwrite bf16 device num_gpus"
    same += " cache disable_checkpointing pretrained_weights start_from pseudo_labels"
    renamed = {"trainer": "tr", "plans": "p", "continue_training": "c", "only_validation": "val"}
    renamed |= {"validate_best": "val_best", "save_probabilities": "npz"}
    result = train(
        arguments.dataset_name_or_id,
        arguments.configuration,
        parse_fold(arguments.fold),
        settings=[*([f"network={arguments.network}"] if arguments.network else []), *arguments.set],
        run_validation=not arguments.no_val,
        **{name: getattr(arguments, name) for name in same.split()},
        **{name: getattr(arguments, flag) for name, flag in renamed.items()},
    )
    if not is_follower():  # the first process tells the result
        print_json(dataclasses.asdict(result)) if arguments.json else print(result.next_commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)


if __name__ == "__main__":  # torchrun -m nnssl.cli.train
    sys.exit(main())
