"""The command ``imbmargin``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from joblib import cpu_count
from joblib.externals.loky.process_executor import TerminatedWorkerError

from imbmargin.benchmark.across import compare_tables
from imbmargin.benchmark.arguments import make_parser
from imbmargin.benchmark.contenders import (
    BASELINES,
    DEFAULT_METHODS,
    check_baselines,
    check_losses,
)
from imbmargin.benchmark.jobs import DataSpec, Job, load_data
from imbmargin.benchmark.paper import PAPER_EPOCHS, table_jobs
from imbmargin.benchmark.published import paper_tables, schedule_note
from imbmargin.benchmark.report import write_report
from imbmargin.benchmark.runner import read_records, run_jobs
from imbmargin.benchmark.table import Group, as_text, method_label
from imbmargin.benchmark.tabular import (
    TABULAR_EPOCHS,
    TABULAR_METHODS,
    TABULAR_REPEATS,
    tabular_jobs,
)
from imbmargin.data.cifar import CIFAR_CLASSES, guess_cifar, read_batches
from imbmargin.data.images import PART_NAMES, find_parts
from imbmargin.datasets import EMBEDDED
from imbmargin.losses import LOSSES
from imbmargin.methods import AFTER, METHODS, SOURCES, TABLE1, make_classifier

__all__ = ["main", "method_rows"]

_SEEDS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, default=None
        Arguments; by default those of the process.

    Returns
    -------
    status : int
        0; 1 if a job failed; 2 if the arguments or the data cannot be used.

    Examples
    --------
    >>> from imbmargin.benchmark.cli import main
    >>> main(["report", "no-such-folder"])
    2
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = make_parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options, shlex.join(["imbmargin", *arguments]))
    except _UserError as error:
        print(f"imbmargin: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with the jobs that are left", file=sys.stderr)
        return 130


class _UserError(Exception):
    """What the user asked for cannot be done; the text says why."""


def _data_specs(options: argparse.Namespace) -> list[DataSpec]:
    return [
        spec
        for source in dict.fromkeys(options.data or ["digits", "breast_cancer"])
        for spec in _specs_of(source, options)
    ]


def _check_used(options: argparse.Namespace) -> None:
    """Raise an error for options that none of the data have a use for."""
    own = [Path(source) for source in options.data or [] if source not in EMBEDDED]
    # What is not there has an error of its own.
    if not all(path.exists() for path in own):
        return
    images = any(path.is_dir() for path in own)
    uses = {
        "target": (any(path.is_file() for path in own), "CSV and Parquet files"),
        "image_size": (images, "folders of images"),
        "cache": (images, "folders of images"),
    }
    for name, (used, kind) in uses.items():
        if getattr(options, name) and not used:
            raise _UserError(
                f"--{name.replace('_', '-')} is for {kind}, and --data has none: leave it out"
            )


def _specs_of(source: str, options: argparse.Namespace) -> list[DataSpec]:
    own = source not in EMBEDDED
    # "photos" and "photos/" are the same data.
    source = os.path.normpath(source)
    imbalances = options.imbalance or ["none" if own else "long_tailed"]
    if "none" in imbalances and (options.ratio is not None or options.n_max is not None):
        raise _UserError(f"--ratio and --n-max make a subset of {source}: add --imbalance")
    is_file = own and Path(source).is_file()
    if is_file and options.target is None:
        raise _UserError(f"--data {source} needs --target, the column of the labels")
    spec = DataSpec(
        source,
        options.target if is_file else None,
        n_max=options.n_max,
        image_size=options.image_size if own and not is_file else None,
        cache=options.cache,
    )
    return [
        replace(spec, imbalance=imbalance, ratio=ratio)
        for imbalance in imbalances
        for ratio in options.ratio or [20.0]
    ]


def _compared_jobs(options: argparse.Namespace) -> list[Job]:
    if options.dataset or options.download:
        raise _UserError("--dataset and --download belong to table1, table2 and table3")
    _check_used(options)
    methods = options.methods or DEFAULT_METHODS
    _check_set(options, methods)
    arguments = tuple(sorted(dict(options.set).items()))
    epochs = options.epochs or 40
    return [
        Job(spec, method, seed, epochs, options.precision, arguments)
        for spec in _data_specs(options)
        for seed in range(options.seeds or _SEEDS)
        for method in dict.fromkeys(methods)
    ]


def _check_set(options: argparse.Namespace, methods: Sequence[str]) -> None:
    baselines = [name for name in methods if name in BASELINES]
    if options.set and baselines:
        raise _UserError(
            f"--set is for the networks, and {baselines} take no arguments; pass --methods without "
            "them"
        )


def _tabular_jobs(options: argparse.Namespace) -> list[Job]:
    names = ("data", "dataset", "download", "target", "imbalance", "ratio", "n_max", "image_size",
             "cache")  # fmt: skip
    foreign = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if foreign:
        raise _UserError(f"tabular has tables of its own: leave out {', '.join(foreign)}")
    if options.part is None:
        raise _UserError(
            "tabular needs --part: tuning, to choose settings with, or judged, to report"
        )
    methods = options.methods or TABULAR_METHODS
    _check_set(options, methods)
    return tabular_jobs(
        options.part,
        methods,
        options.seeds or (1 if options.quick else TABULAR_REPEATS),
        options.epochs or TABULAR_EPOCHS,
        options.precision,
        dict(options.set),
        options.quick,
    )


def _table_jobs(options: argparse.Namespace) -> list[Job]:
    table, methods = options.experiment, options.methods or list(TABLE1)
    if len(options.data or []) != 1:
        raise _UserError(f"{table} needs --data with the folder of CIFAR")
    foreign = [name for name in methods if name not in METHODS]
    if foreign or (options.methods and table != "table1"):
        raise _UserError(f"{table} has no rows {foreign or methods}; --methods is for table1")
    if options.target or options.image_size or "none" in (options.imbalance or []):
        raise _UserError(
            f"{table} is of long-tailed and step subsets of CIFAR as it is: leave out --target, "
            "--image-size and --imbalance none"
        )
    root = Path(options.data[0])
    if options.download:
        if options.dataset is None:
            raise _UserError(f"--download needs --dataset, one of {list(CIFAR_CLASSES)}")
        read_batches(root, options.dataset, download=True)
    dataset = options.dataset or guess_cifar(root)
    if table != "table1" and dataset != {"table2": "cifar10", "table3": "cifar100"}[table]:
        raise _UserError(f"{table} is not of {dataset}: table2 is of cifar10, table3 of cifar100")
    specs = [
        DataSpec(
            options.data[0],
            None,
            imbalance,
            ratio,
            options.n_max,
            dataset=dataset,
            cache=options.cache,
        )
        for imbalance in options.imbalance or ["long_tailed"]
        for ratio in options.ratio or [100.0]
    ]
    rows = [name for name in METHODS if name in methods]
    epochs = options.epochs or PAPER_EPOCHS
    return table_jobs(
        table, specs, rows, options.seeds or _SEEDS, epochs, options.precision, dict(options.set)
    )


def _check_outside(options: argparse.Namespace) -> None:
    """Raise an error if results or a cache would lie where each folder is a class."""
    for source in options.data or []:
        root = Path(source)
        if source in EMBEDDED or not root.is_dir():
            continue
        # The published batches of CIFAR, which the tables take, have no folders of classes.
        parents = [root] if options.experiment == "compare" else []
        if parts := find_parts(root):
            # Also a part that is not there yet.
            parents = [*parts.values(), *(root / name for name in PART_NAMES)]
        for name, path in (("out", options.out), ("cache", options.cache)):
            for parent in parents:
                if path and Path(path).resolve().is_relative_to(parent.resolve()):
                    raise _UserError(
                        f"--{name} {path} lies in {parent}, where each folder is taken for a "
                        f"class; pass --{name} with a folder elsewhere"
                    )


def _benchmark(options: argparse.Namespace, command: str) -> int:
    small = options.experiment == "tabular"
    if not small and (options.part or options.quick):
        raise _UserError("--part and --quick belong to tabular")
    make = {"compare": _compared_jobs, "tabular": _tabular_jobs}
    try:
        _check_outside(options)
        jobs = make.get(options.experiment, _table_jobs)(options)
        methods = list(dict.fromkeys(job.method for job in jobs))
        check_baselines(methods)
        check_losses(methods, dict(options.set))
        for spec in reversed(list(dict.fromkeys(job.data for job in jobs))):
            # Last the first, which then is there for the first job.
            load_data(spec, 0)
    except (ValueError, OSError, ImportError) as error:
        raise _UserError(str(error)) from error
    if options.dask and options.jobs:
        raise _UserError("--jobs is for this machine; the Dask cluster has as many as its workers")
    whole_machine = any(job.data.is_folder for job in jobs)
    n_jobs = options.jobs or (1 if whole_machine else min(cpu_count(), len(jobs)))
    results = options.out / "jobs"
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _UserError(f"--out {options.out} cannot be written: {error}") from error
    try:
        records = run_jobs(jobs, results, n_jobs, command, options.dask, small)
    except (OSError, ImportError) as error:
        raise _UserError(str(error)) from error
    except TerminatedWorkerError as error:
        raise _UserError(
            "a job was ended from outside, perhaps for its memory; run the same command with "
            "--jobs 1: the jobs that are done are kept"
        ) from error
    return _conclude(records, options.out)


def _report(options: argparse.Namespace, _: str) -> int:
    records = read_records(options.out / "jobs")
    if not records:
        raise _UserError(f"{options.out} has no results; run imbmargin benchmark --out first")
    return _conclude(records, options.out)


def _conclude(records: list[dict[str, Any]], out: Path) -> int:
    groups = write_report(records, out)
    for group in groups:
        if not group.is_keel:
            _print_group(group)
    for found in compare_tables(groups):
        print(f"\n{found.title}\n{found.describe()}")
        if found.names:
            print(f"\nMean ranks\n{as_text(found.rank_rows())}")
            print(f"\nMean scores\n{as_text(found.score_rows())}")
    for group in groups:
        for record in group.failed:
            job = record["job"]
            where = f"{group.short_title}, " if group.is_keel else ""
            label = method_label(record)
            print(f"failed: {where}{label}, seed {job['seed']}: {record['error']}")
    if not all(group.is_keel for group in groups):
        print("\nPercent after the last epoch, mean ± standard deviation over the seeds.")
    print(f"Report: {out / 'report.html'}")
    return 1 if any(group.failed for group in groups) else 0


def _print_group(group: Group) -> None:
    print(f"\n{group.title}")
    if group.setting is not None:
        print(schedule_note(group.job["epochs"]))
        for caption, rows in paper_tables(group):
            print(f"\n{caption}\n{as_text(rows)}")
    elif group.records:
        print(as_text(group.rows()))


def _after(name: str) -> str:
    """Return the name of the meta-estimator around a method's classifier."""
    if name not in AFTER:
        return "-"
    return type(make_classifier(name)).__name__


def method_rows() -> list[list[str]]:
    """Return the table of methods: a header, and a row for each entry of `METHODS`.

    Examples
    --------
    >>> from imbmargin.benchmark.cli import method_rows
    >>> method_rows()[1][:2]
    ['ERM', 'cross_entropy']
    """
    choices = ["loss", "class weights", "sampling", "from epoch", "head", "then"]
    rows = [["method", *choices, "source"]]
    for name, arguments in METHODS.items():
        start = arguments.get("drw_epoch", arguments.get("drs_epoch"))
        rows.append(
            [
                name,
                arguments["loss"],
                arguments.get("class_weight", "-"),
                arguments.get("resample", "-"),
                "first" if start is None else f"{start:.0%}",
                LOSSES[arguments["loss"]].head,
                _after(name),
                SOURCES[name],
            ]
        )
    return rows


def _methods(options: argparse.Namespace, _: str) -> int:
    rows = method_rows()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        pairs = zip(row, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in pairs).rstrip())
    return 0


_COMMANDS = {"benchmark": _benchmark, "report": _report, "methods": _methods}
