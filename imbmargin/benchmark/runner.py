"""Run jobs, in parallel where it helps; each leaves one JSON file, and is not run twice."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from threadpoolctl import threadpool_limits

from imbmargin.benchmark.jobs import Job, run_job
from imbmargin.benchmark.progress import Progress
from imbmargin.checkpoint import write_file

__all__ = ["read_record", "read_records", "run_jobs"]


def run_jobs(
    jobs: Sequence[Job],
    out: Path,
    n_jobs: int = 1,
    command: str = "",
    dask: str | None = None,
    small: bool = False,
) -> list[dict[str, Any]]:
    """Run the jobs that have no result in the folder yet, and return the records of all.

    A job that was broken off goes on from the last epoch that it completed. Jobs with the same
    training (`Job.training`) do it once.

    Parameters
    ----------
    jobs : sequence of Job
        What to do.
    out : Path
        Folder of the JSON files; made if it is not there.
    n_jobs : int, default=1
        Jobs at a time. 1 runs in this process with all cores and shows the epochs.
    command : str, default=""
        Kept in the records, so that a result tells how it was made.
    dask : str, default=None
        Address of the scheduler of a Dask cluster, on whose workers the jobs then run. They need
        the package, and must see the data and ``out`` under the same paths.
    small : bool, default=False
        Whether these are jobs of seconds: each then has one thread, so that their times can be
        compared, and no state is kept of a job that is broken off.

    Returns
    -------
    records : list of dict
        In the order of the jobs. A failed job has a record too, and is tried again next time.

    Raises
    ------
    ImportError
        If dask is given, and not installed.
    OSError
        If the folder cannot be written, or no scheduler answers.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from imbmargin.benchmark.jobs import DataSpec, Job
    >>> from imbmargin.benchmark.runner import run_jobs
    >>> jobs = [Job(DataSpec("iris"), "ERM", seed=seed, epochs=2) for seed in (0, 1)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     records = run_jobs(jobs, pathlib.Path(folder))
    ...     len(list(pathlib.Path(folder).glob("*.json")))
    2
    """
    out.mkdir(parents=True, exist_ok=True)
    jobs = list(dict.fromkeys(jobs))
    found: dict[Job, Any] = {job: read_record(out / job.file_name) for job in jobs}
    pending = [job for job in jobs if (found[job] or {}).get("status") != "done"]
    checkpoints = out / "checkpoints"
    folders = {job: _checkpoint_folder(job, checkpoints) for job in jobs}
    waiting = Counter(folders[job] for job in pending)
    results = _run(pending, n_jobs, None if small else checkpoints.absolute(), dask)
    with Progress(folders, set(jobs) - set(pending)) as progress, closing(results):
        for job, record in results:
            found[job] = {**record, "command": command}
            text = json.dumps(found[job], indent=1, allow_nan=False)
            write_file(out / job.file_name, text.encode())
            progress.finish(job, _describe(job, record))
            waiting[folders[job]] -= record["status"] == "done"
            if not waiting[folders[job]]:
                shutil.rmtree(folders[job], ignore_errors=True)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return [record for record in found.values() if record is not None]


def _run(
    jobs: Sequence[Job], n_jobs: int, checkpoints: Path | None, dask: str | None
) -> Generator[tuple[Job, dict[str, Any]]]:
    if dask is not None:
        with _connect(dask):
            yield from _run_parallel(jobs, -1, checkpoints)
    elif n_jobs == 1:
        for job in jobs:
            yield _run_one(job, checkpoints, shows_epochs=True)
    else:
        # Each job gets its share of the cores: more threads would wait for one another.
        threads = max(1, cpu_count() // n_jobs)
        with _ended_by_sigterm(), parallel_config(backend="loky", inner_max_num_threads=threads):
            yield from _run_parallel(jobs, n_jobs, checkpoints)


def _run_parallel(
    jobs: Sequence[Job], n_jobs: int, checkpoints: Path | None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    first: dict[Job, Job] = {}
    for job in jobs:
        # Without checkpoints each trains for itself.
        first.setdefault(job if checkpoints is None else job.training, job)
    training = set(first.values())
    for wave in (list(first.values()), [job for job in jobs if job not in training]):
        parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
        yield from parallel(delayed(_run_one)(job, checkpoints) for job in wave)


@contextmanager
def _handling(number: signal.Signals, usual: Any, handler: Any) -> Iterator[None]:
    """Handle a signal in the main thread, where its handler is the usual one; then give it back."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(number) is not usual:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, usual)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, at which joblib ends its workers; else they would train on."""

    def end(number: int, _: Any) -> None:
        # A second one must not break off the end of the workers.
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    with _handling(signal.SIGTERM, signal.SIG_DFL, end):
        yield


@contextmanager
def _connect(address: str) -> Iterator[None]:
    """Make joblib use a Dask cluster."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--dask needs dask: pip install imbmargin[distributed]") from error
    try:
        client = Client(address)
    except ValueError as error:
        raise OSError(f"dask={address!r} is not the address of a scheduler: {error}") from error
    with client, parallel_config(backend="dask"):
        yield


def _run_one(
    job: Job, checkpoints: Path | None, shows_epochs: bool = False
) -> tuple[Job, dict[str, Any]]:
    """Run a job; without a folder for checkpoints it is a small one."""
    with _unswallowed_interrupt():
        if checkpoints is None:
            with _one_thread():
                return job, run_job(job, shows_epochs)
        return job, run_job(job, shows_epochs, _checkpoint_folder(job, checkpoints))


class _Interrupted(BaseException):
    """Ctrl-C."""


@contextmanager
def _unswallowed_interrupt() -> Iterator[None]:
    """Let Ctrl-C end a job: skorch takes KeyboardInterrupt for the end of a training."""

    def interrupt(*_: Any) -> None:
        raise _Interrupted

    try:
        with _handling(signal.SIGINT, signal.default_int_handler, interrupt):
            yield
    except _Interrupted:
        raise KeyboardInterrupt from None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Leave one thread to torch and to the libraries below numpy and scikit-learn."""
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _checkpoint_folder(job: Job, checkpoints: Path) -> Path:
    return checkpoints / Path(job.training.file_name).stem


def _describe(job: Job, record: dict[str, Any]) -> str:
    if record["status"] == "failed":
        return f"{job.title} failed"
    return f"{job.title}: balanced accuracy {record['scores']['balanced_accuracy']:.1%}"


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record in a JSON file, or None if there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(record, dict) and {"format", "job", "status"} <= record.keys()
    return record if known and record["format"] == 1 else None


def read_records(out: Path) -> list[dict[str, Any]]:
    """Return all records of a folder. A file that holds none is passed over with a warning."""
    found = {path: read_record(path) for path in sorted(out.glob("*.json"))}
    for path in (path for path, record in found.items() if record is None):
        warnings.warn(
            f"{path} is damaged, or no result of a job, and is left out; the command that made it "
            "makes it anew",
            UserWarning,
            stacklevel=2,
        )
    return [record for record in found.values() if record is not None]
