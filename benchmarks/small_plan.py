"""Make smaller plans of a data set's preprocessed cases, so that a table of many runs fits into an afternoon.

    python -m benchmarks.small_plan 27 2d 128 128 --features 8

Every nnUNetPlans*.json of the data set gets a sibling nnUNetPlansSmall*.json with that patch size and as many features
in the first stage as asked for, the others in proportion; cases, spacing and batch size are the same. Train with
`-p nnUNetPlansSmall`.
"""

from __future__ import annotations

import argparse

import numpy as np

from nnssl.data.raw import dataset_name
from nnssl.files import environment_folder, read_json, write_json

NAME, SMALL = "nnUNetPlans", "nnUNetPlansSmall"


def main() -> None:
    """Write the plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("patch_size", type=int, nargs="+")
    parser.add_argument("--features", type=int, required=True, help="features of the first stage")
    arguments = parser.parse_args()
    root = environment_folder("nnUNet_preprocessed")
    for file in sorted((root / dataset_name(arguments.dataset, root)).glob(f"{NAME}*.json")):
        if not (file.name.startswith(f"{NAME}@") or file.stem == NAME) or "manifest" in file.name:
            continue
        plans = read_json(file)
        plan = plans["configurations"][arguments.configuration]
        network = plan["architecture"]["arch_kwargs"]
        if len(arguments.patch_size) != len(plan["patch_size"]):
            parser.error(f"the patch size needs {len(plan['patch_size'])} numbers")
        if np.any(np.array(arguments.patch_size) % np.prod(network["strides"], axis=0)):
            parser.error(f"the patch size is no multiple of the strides {network['strides']}")
        features = network["features_per_stage"]
        network["features_per_stage"] = [size * arguments.features // features[0] for size in features]
        plan["patch_size"] = arguments.patch_size
        plans["plans_name"] = plans["plans_name"].replace(NAME, SMALL)
        plans["configurations"] = {arguments.configuration: plan}
        write_json(file.with_name(file.name.replace(NAME, SMALL)), plans)
        print(file.with_name(file.name.replace(NAME, SMALL)))


if __name__ == "__main__":
    main()
