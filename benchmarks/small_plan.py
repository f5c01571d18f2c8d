"""Add a smaller configuration to the plans of a data set, so that a table of many runs fits into an afternoon.

    python -m benchmarks.small_plan 27 2d 2d_small 128 96 --spacing 2.25 2.25 --features 8
    nnssl_plan_and_preprocess -d 27 -c 2d_small -hardware cpu -labelled 3        # preprocesses it, as any other

Every nnUNetPlans*.json gets it: as the named configuration, with that patch size, voxel size and as many features in
the first stage, the others in proportion.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from nnssl.data.raw import dataset_name
from nnssl.system.files import environment_folder, read_json, write_json


def main(argv: Sequence[str] | None = None) -> None:
    """Write the plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("name")
    parser.add_argument("patch_size", type=int, nargs="+")
    parser.add_argument("--spacing", type=float, nargs="+", required=True)
    parser.add_argument("--features", type=int, required=True)
    arguments = parser.parse_args(argv)
    root = environment_folder("nnUNet_preprocessed")
    for file in sorted((root / dataset_name(arguments.dataset, root)).glob("nnUNetPlans*.json")):
        if file.name.endswith(".manifest.json"):
            continue
        plans = read_json(file)
        plan = plans["configurations"][arguments.configuration]
        network = plan["architecture"]["arch_kwargs"]
        if len(plan["spacing"]) != len(arguments.spacing) or len(plan["spacing"]) != len(arguments.patch_size):
            parser.error(f"patch size and spacing need {len(plan['spacing'])} numbers")
        if np.any(np.array(arguments.patch_size) % np.prod(network["strides"], axis=0)):
            parser.error(f"the patch size is no multiple of the strides {network['strides']}")
        sizes = np.array(plan["median_image_size_in_voxels"]) * plan["spacing"] / arguments.spacing
        features = network["features_per_stage"]
        network["features_per_stage"] = [size * arguments.features // features[0] for size in features]
        plans["configurations"][arguments.name] = {
            **plan,
            "data_identifier": f"{plans['plans_name']}_{arguments.name}",
            "patch_size": arguments.patch_size,
            "spacing": arguments.spacing,
            "median_image_size_in_voxels": sizes.round().tolist(),
        }
        write_json(file, plans)
        print(file)


if __name__ == "__main__":
    main()
