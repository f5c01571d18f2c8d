"""Stock nnU-Net on the labelled few: its own trainer, loaders and schedule, our preprocessed cases and label budget.

    python -m benchmarks.stock DATASET CONFIGURATION FOLD -labelled 5 -num_iterations 1500

Only the split (the labelled cases of the budget) and the number of epochs differ from `nnUNetv2_train`.
"""

from __future__ import annotations

import argparse
import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.data.raw import dataset_name, patient_of
from nnssl.data.splits import LabelBudget, fold_cases, read_splits
from nnssl.system.files import environment_folder, read_json
from nnssl.training.settings import ITERATIONS_PER_EPOCH


def main() -> None:
    """Train and validate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("fold", type=int)
    parser.add_argument("-labelled", required=True)
    parser.add_argument("-num_iterations", type=int, required=True)
    parser.add_argument("-device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    root = environment_folder("nnUNet_preprocessed")
    folder = root / dataset_name(arguments.dataset, root)
    budget = LabelBudget.parse(arguments.labelled)
    plans, dataset_json = read_json(folder / f"nnUNetPlans{budget.tag}.json"), read_json(folder / "dataset.json")
    splits = read_splits(folder)
    patients = {case: patient_of(case, dataset_json) for split in splits for case in [*split["train"], *split["val"]]}
    cases = fold_cases(splits, arguments.fold, budget, patients)
    fingerprint = folder / "dataset_fingerprint.json"
    if not fingerprint.exists():  # nnU-Net copies it at the start of every training
        fingerprint.write_text((folder / f"dataset_fingerprint{budget.tag}.json").read_text())
    trainer = nnUNetTrainer(
        {**plans, "continue_training": False},
        arguments.configuration,
        arguments.fold,
        dataset_json,
        torch.device(arguments.device),
    )
    trainer.do_split = lambda: (list(cases.labelled), list(cases.validation))
    trainer.num_epochs = arguments.num_iterations // ITERATIONS_PER_EPOCH
    trainer.run_training()
    trainer.perform_actual_validation()


if __name__ == "__main__":
    main()
