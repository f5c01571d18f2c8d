"""nnssl_sweep: many runs from one command, which goes on after a kill."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnssl.cli.runtime import parser, print_json, run

ABSENT = argparse.SUPPRESS  # a flag that is given replaces the value of study.toml
ABOUT = (
    "Train the runs of a study: trainers x settings x configurations x folds x label budgets x picks x seeds. "
    "Each run is the ordinary nnssl_train. Killed at any time, the same command goes on."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the destinations of the first flags are attributes of `Study`."""
    made = parser("nnssl_sweep", ABOUT)
    made.add_argument("study", nargs="?", metavar="study.toml", help="file with the study; flags replace its values")
    for flag, name, kind, nargs, metavar, text in (
        ("-d", "dataset", str, None, "ID", "data set, 27 or Dataset027_ACDC"),
        ("-c", "configurations", str, "+", "CONF", "configurations: 2d, 3d_fullres, 3d_lowres"),
        ("-tr", "trainers", str, "+", "TRAINER", "methods, see nnssl_methods"),
        ("-f", "folds", str, "+", "FOLD", "folds, or all (default: 0)"),
        ("-labelled -labeled", "labelled", str, "+", "N", "label budgets: 5 20 10%%; all for every label (default)"),
        ("-picks", "picks", int, None, "K", "choices of the labelled patients of each budget (default: 1)"),
        ("-seeds", "seeds", int, "+", "N", "seeds (default: 0)"),
        ("-num_iterations", "num_iterations", int, None, "N", "length of every run (default: 250000)"),
        ("-p", "plans", str, None, "PLANS", "plans, without @lab7 of a budget (default: nnUNetPlans)"),
        ("-hardware", "hardware", str, None, "cpu", "of missing plans (default: as the data set's other plans)"),
        ("--set", "settings", str, "+", "NAME=VALUE", "settings of every run"),
    ):
        made.add_argument(*flag.split(), dest=name, type=kind, nargs=nargs, metavar=metavar, default=ABSENT, help=text)
    add = made.add_argument
    add("--variant", dest="variants", nargs="+", action="append", default=ABSENT, metavar="NAME=VALUE",
        help="settings that the trainers with these settings get; repeat it for several variants")  # fmt: skip
    add("--control", action="store_true", default=ABSENT, help="also FixMatchTrainer with unlabelled_weight=0")
    add("--bf16", action="store_true", default=ABSENT, help="calculate in bfloat16")
    add("-o", dest="output_folder", required=True, metavar="FOLDER", help="folder of the study; alone: go on with it")
    add("-device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="default: cuda where there is one")
    add("-slots", type=int, metavar="N", help="runs at the same time (default: one a GPU, or one on the CPU)")
    add("-engine", default="local", choices=("local", "ray"), help="where runs train: this machine, or a Ray cluster")
    add("-address", metavar="ADDRESS", help="of the Ray cluster, auto or HOST:PORT (default: one on this machine)")
    add("--retry_failed", action="store_true", help="also start failed runs again")
    add("--dry_run", action="store_true", help="print the runs with time and disk; write nothing, train nothing")
    add("--print_commands", action="store_true", help="print a command a line, for SLURM or LSF arrays; train nothing")
    add("--status", action="store_true", help="print the states of the study in FOLDER")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Train, or print the plan, the commands or the states."""
    from nnssl.sweep import api, tables
    from nnssl.sweep.study import ATTRIBUTES, read_study, study_of

    values = {name: value for name, value in vars(arguments).items() if name in ATTRIBUTES}
    values = read_study(Path(arguments.study), values) if arguments.study else values
    study, folder = study_of(values) if values else None, arguments.output_folder
    if arguments.dry_run or arguments.print_commands:
        if not arguments.dry_run:
            api.keep_study(study, folder)
        plan = api.plan_sweep(study, folder, arguments.device)
        if arguments.json:
            print_json(tables.plan_dicts(plan.runs, plan.estimates))
        else:
            print(tables.commands_text(plan) if arguments.print_commands else tables.plan_text(plan, folder))
        return
    options = {name: getattr(arguments, name) for name in ("device", "slots", "retry_failed", "engine", "address")}
    tasks = api.study_status(folder) if arguments.status else api.sweep(study, folder, **options)
    if not arguments.status:
        api.check_all_done(tasks, folder)
    text = tables.status_text(tasks, folder)
    print_json([tables.task_dict(task) for task in tasks]) if arguments.json else print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
