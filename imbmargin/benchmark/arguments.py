"""The arguments of the command ``imbmargin``, and what its help teaches."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from imbmargin._version import __version__
from imbmargin.benchmark.collection import PARTS
from imbmargin.benchmark.contenders import BASELINES, CONTENDERS, DEFAULT_METHODS
from imbmargin.benchmark.jobs import IMBALANCES
from imbmargin.benchmark.paper import TABLES
from imbmargin.benchmark.tabular import TABULAR_METHODS
from imbmargin.data.cifar import CIFAR_CLASSES
from imbmargin.datasets import EMBEDDED
from imbmargin.methods import TABLE1

__all__ = ["make_parser"]

# What the command itself passes to every network, and what its user has to do instead.
_OWN = {
    "max_epochs": "pass --epochs",
    "random_state": "pass --seeds",
    "precision": "pass --precision",
    "checkpoint_dir": "leave it out, the state of a job that is broken off is kept in any case",
    "image_shape": "leave it out, it is that of the data",
    "callbacks": "leave it out, its own watch the training",
}

_FIRST_STEPS = """first steps:
  imbmargin benchmark                 compare on embedded data, in one to three minutes
  imbmargin benchmark --help          on your own tables and images, and the papers' tables
  imbmargin methods                   the names of the methods, what each is, and its source

in Python:
  from imbmargin import MaxMarginClassifier
  clf = MaxMarginClassifier(drw_epoch=0.8, random_state=0).fit(X, y)
"""

_EXAMPLES = """examples:
  imbmargin benchmark
  imbmargin benchmark --data payments.csv --target fraud
  imbmargin benchmark --data photos/ --image-size 32 --methods ERM MM-LDAM-DRW --epochs 200
  imbmargin benchmark table1 --data cifar10/ --seeds 3 --precision bfloat16
  imbmargin benchmark table2 --data cifar10/ --imbalance long_tailed step --ratio 10 100
  imbmargin benchmark tabular --part tuning --quick

Each job, a method on a data set with a seed, leaves a file in the folder of the results. A command
that was stopped goes on where it was, and one with more methods or seeds runs only what is new.
Methods that do something after the same training share it within a command.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; ``command`` of what it reads is "benchmark", "report" or "methods".

    Examples
    --------
    >>> from imbmargin.benchmark.arguments import make_parser
    >>> make_parser().parse_args(["benchmark", "--seeds", "5"]).seeds
    5
    """
    raw: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="imbmargin",
        description="Deep learning on imbalanced data: the methods of the field, compared.",
        epilog=_FIRST_STEPS,
        **raw,
    )
    parser.add_argument("--version", action="version", version=f"imbmargin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    benchmark = commands.add_parser(
        "benchmark",
        help="compare methods, samplers and ensembles on a data set",
        epilog=_EXAMPLES,
        **raw,
    )
    _add_experiment(benchmark)
    _add_data(benchmark.add_argument_group("data"))
    _add_training(benchmark.add_argument_group("training"))
    _add_running(benchmark.add_argument_group("running"))
    report = commands.add_parser("report", help="write the report of a results folder anew")
    report.add_argument("out", type=Path, help="folder of an earlier benchmark")
    commands.add_parser("methods", help="print the table of methods")
    return parser


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiment",
        nargs="?",
        choices=("compare", *TABLES, "tabular"),
        default="compare",
        help="compare: methods on data of your choice. table1: the methods of the paper on CIFAR. "
        "table2, table3: MM-DRW over the published beta and delta_neg, on CIFAR-10 and CIFAR-100. "
        "tabular: methods over many tables of the KEEL repository, which need imbmargin[bench] "
        "(default: compare)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=CONTENDERS,
        metavar="METHOD",
        help="what is compared: the names that `imbmargin methods` prints, and "
        f"{', '.join(BASELINES)} (default: {' '.join(DEFAULT_METHODS)}; for table1 its "
        f"{len(TABLE1)} rows; for tabular {len(TABULAR_METHODS)} networks, samplers, ensembles and "
        "others)",
    )
    parser.add_argument("--part", choices=PARTS, help="half of the tables, for tabular")
    parser.add_argument("--quick", action="store_true", help="for tabular, a few small tables only")


def _add_data(group: Any) -> None:
    add = group.add_argument
    add(
        "--data",
        nargs="+",
        metavar="DATA",
        help=f"embedded data ({', '.join(EMBEDDED)}), a CSV or Parquet file, or a folder of images "
        "with a folder for each class (default: digits breast_cancer). For table1 to table3: the "
        "folder of CIFAR, with train/ and test/ or with the published batches",
    )
    add("--target", metavar="COLUMN", help="column of the labels, of a CSV or Parquet file")
    add(
        "--imbalance",
        nargs="+",
        choices=IMBALANCES,
        help="subsets of the training part (default: long_tailed for embedded data and the papers' "
        "tables, none for your own)",
    )
    add(
        "--ratio",
        nargs="+",
        type=float,
        help="imbalance ratios of the subsets (default: 20; for table1 to table3 100)",
    )
    add(
        "--n-max",
        type=_positive,
        metavar="ROWS",
        help="rows of the most frequent class of the subset (default: all it has)",
    )
    add("--image-size", type=_positive, metavar="PIXELS", help="cut and resize images of a folder")
    add(
        "--cache",
        metavar="FOLDER",
        help="keep the decoded images of a folder here, so that later runs need not decode them",
    )
    add(
        "--dataset",
        choices=CIFAR_CLASSES,
        help="which CIFAR the folder holds (default: by its number of classes)",
    )
    add("--download", action="store_true", help="let torchvision fetch CIFAR into the folder")


def _add_training(group: Any) -> None:
    add = group.add_argument
    add(
        "--seeds",
        type=_positive,
        metavar="N",
        help="number of seeds (default: 3); for tabular, of splits into five folds (default: 2, "
        "or 1 with --quick)",
    )
    add(
        "--epochs",
        type=_positive,
        help="epochs of the networks (default: 40; for table1 to table3 200, the papers' number: "
        "warm-up (from 60 on), drops of the rate and deferral move in proportion)",
    )
    add(
        "--precision",
        choices=("float32", "bfloat16", "float16", "auto"),
        default="float32",
        help="arithmetic of the methods (default: float32)",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="arguments of MaxMarginClassifier for every method, each of which must take them, as "
        "in --methods LDAM-DRW MM-DRW --set criterion__scale=10",
    )


def _add_running(group: Any) -> None:
    add = group.add_argument
    add(
        "--out",
        type=Path,
        default=Path("imbmargin-benchmark"),
        metavar="FOLDER",
        help="folder of the results (default: imbmargin-benchmark)",
    )
    add(
        "--jobs",
        type=_positive,
        metavar="N",
        help="jobs at a time (default: one for each core, or one for folders of images)",
    )
    add(
        "--dask",
        metavar="ADDRESS",
        help="run the jobs on the workers of this Dask scheduler, such as tcp://host:8786; they "
        "must see the data and the results under the same paths",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must have the form name=value, got {text!r}")
    if name in _OWN:
        raise argparse.ArgumentTypeError(f"{name} is set by the command: {_OWN[name]}")
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
    try:
        # A job is a key, and its arguments become a part of its file.
        hash(found)
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{name} must be a number, a word, True, False, None, or a tuple of such in place of a "
            f"list, as in '{name}=(1, 2)'; got {value}"
        ) from error
    return name, found
