"""Post-process predictions: of the whole foreground, the largest connected component alone is kept.

    python -m benchmarks.largest_component FOLD/validation POSTPROCESSED
    nnssl_evaluate $nnUNet_preprocessed/DATASET/gt_segmentations POSTPROCESSED --chill

That is the first of the steps nnU-Net tries for its post-processing, here as a fixed rule instead of a choice by score.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing_to_folder,
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.system.files import read_json


def main() -> None:
    """Write the folder, with the plans and dataset.json that evaluation takes the labels from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    plans = PlansManager(read_json(arguments.predictions / "plans.json"))
    labels = plans.get_label_manager(read_json(arguments.predictions / "dataset.json")).foreground_labels
    apply_postprocessing_to_folder(
        str(arguments.predictions),
        str(arguments.output),
        [remove_all_but_largest_component_from_segmentation],
        [{"labels_or_regions": labels}],
        num_processes=1,
    )
    for name in ("plans.json", "dataset.json"):
        shutil.copy(arguments.predictions / name, arguments.output)


if __name__ == "__main__":
    main()
