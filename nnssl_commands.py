"""Entry points of the `nnssl_*` commands.

They stand outside the package on purpose: another public project uses the import name `nnssl`, and a command must be
able to say so when that one was imported.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module


def _run(command: str) -> int:
    package = import_module("nnssl")
    if getattr(package, "DISTRIBUTION", None) != "nnssl-semi":
        print(
            "error: the imported package 'nnssl' is not nnssl-semi\n"
            f"  where: {getattr(package, '__file__', None) or list(package.__path__)}\n"
            "  why:   another project (self-supervised pre-training) uses the same import name\n"
            "  run:   install nnssl-semi in a virtual environment of its own",
            file=sys.stderr,
        )
        return 4
    from nnssl.errors import missing_package

    try:
        return int(import_module(f"nnssl.cli.{command}").main())
    except (
        ModuleNotFoundError
    ) as error:  # while the command itself is imported; later ones become messages in its `main`
        missing = missing_package(error, f"nnssl_{command}")
        if missing is None:
            raise
        as_json = "--json" in sys.argv
        print(
            json.dumps(missing.as_dict()) if as_json else f"error: {missing}",
            file=sys.stdout if as_json else sys.stderr,
        )
        return missing.exit_code


run = partial(_run, "run")
convert = partial(_run, "convert")
plan_and_preprocess = partial(_run, "plan_and_preprocess")
train = partial(_run, "train")
runs = partial(_run, "runs")
predict = partial(_run, "predict")
pseudo_label = partial(_run, "pseudo_label")
pseudo_quality = partial(_run, "pseudo_quality")
suggest = partial(_run, "suggest")
accept = partial(_run, "accept")
evaluate = partial(_run, "evaluate")
sweep = partial(_run, "sweep")
find_best = partial(_run, "find_best")
compare = partial(_run, "compare")
export = partial(_run, "export")
install = partial(_run, "install")
report = partial(_run, "report")
look = partial(_run, "look")
methods = partial(_run, "methods")
phantom = partial(_run, "phantom")
clean = partial(_run, "clean")
