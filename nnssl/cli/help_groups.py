"""The headings of `--help` for commands with many options; an option that is not listed stands under *options*."""

from __future__ import annotations

GROUPS: dict[str, dict[str, str]] = {
    "nnssl_run": {
        "scans": "-images -labels -unlabelled -test -test_labels -channel -label_names -patient",
        "training": "-budget -time -num_iterations -tr -c",
        "study": "-o --yes",
    },
    "nnssl_plan_and_preprocess": {
        "data": "-d -labelled -pick -protocol -setting -f --skip_unreadable --verify --verify_dataset_integrity",
        "plan": "-c -tr -hardware -budget -gpu_memory_target -overwrite_target_spacing -normalisation -pl -fpe "
        "-preprocessor_name -overwrite_plans_name",
        "work": "-np -npfp --no_pp --clean --verbose --no_pbar",
    },
    "nnssl_train": {
        "data": "-p -labelled -pick -protocol -setting",
        "method": "-tr -network --set",
        "run": "-num_iterations -seed -tag --overwrite --c --disable_checkpointing",
        "start": "-pretrained_weights -start_from -pseudo_labels",
        "validation": "--val --val_best --npz --no_val",
        "device": "-device -num_gpus --bf16",
    },
    "nnssl_predict": {
        "files": "-i -o --save_probabilities --continue_prediction",
        "model": "-d -tr -p -c -tag -m -f -chk -prev_stage_predictions",
        "prediction": "-step_size --disable_tta --no_postprocessing",
        "work": "-npp -nps -num_parts -part_id -device --not_on_device --disable_progress_bar --verbose",
    },
    "nnssl_evaluate": {
        "a run instead of folders": "-d -tr -p -c -f -tag",
        "labels": "-djfile -pfile -l -il --chill --ignore_placement",
        "scores": "-o -np -metrics -nsd_tolerance_mm",
    },
    "nnssl_sweep": {
        "runs": "-d -c -tr -f -labelled -picks -seeds -num_iterations -p -hardware --set --variant --control --bf16",
        "study": "-o --retry_failed --dry_run --print_commands --status",
        "work": "-device -slots",
    },
}


def headings_of(command: str) -> dict[str, str]:
    """Return option -> heading for a command, in the order in which the headings are shown; empty without headings."""
    return {option: heading for heading, options in GROUPS.get(command, {}).items() for option in options.split()}
