"""The epochs of all jobs, wherever they run: a bar in a terminal, lines in a log."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imbmargin.benchmark.jobs import Job
from imbmargin.checkpoint import CheckpointFolder

__all__ = ["Progress"]

_SECONDS = 2.0
_SECONDS_IN_A_LOG = 30.0


class Progress:
    """Show how many epochs are done and how long the others will take.

    Jobs run in other processes, perhaps on other machines; where each of them is can be read off
    the names of its checkpoints. Where standard error is no terminal, a line is printed now and
    then instead of a bar that moves.

    Parameters
    ----------
    folders : dict of Job to Path
        The folder of each job, in which each of its trainings has a folder of checkpoints.
    done : iterable of Job
        Those that have a result already.

    Examples
    --------
    >>> import pathlib
    >>> from imbmargin.benchmark.jobs import DataSpec, Job
    >>> from imbmargin.benchmark.progress import Progress
    >>> job = Job(DataSpec("iris"), "ERM", seed=0, epochs=5)
    >>> with Progress({job: pathlib.Path("none")}, []) as progress:
    ...     progress.count()
    ...     progress.finish(job, "done")
    ...     progress.count()
    0
    5
    """

    def __init__(self, folders: dict[Job, Path], done: Iterable[Job]) -> None:
        self.folders = folders
        self.done = set(done)
        self._in_log = not sys.stderr.isatty()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def count(self) -> int:
        """Return the epochs that are done."""
        return sum(
            job.epochs if job in self.done else min(job.epochs, _epochs(folder))
            for job, folder in self.folders.items()
        )

    def __enter__(self) -> Progress:
        total = sum(job.epochs for job in self.folders)
        self.bar = tqdm(
            total=total,
            initial=self.count(),
            desc="benchmark",
            unit="epoch",
            smoothing=0,
            # In a log the text of the bar is printed line by line, and the bar itself is not.
            file=io.StringIO() if self._in_log else None,
        )
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        if self._in_log:
            self._update()
        self.bar.close()

    def finish(self, job: Job, text: str) -> None:
        """Take note that a job is done."""
        self.done.add(job)
        left = len(self.folders) - len(self.done)
        self.bar.set_postfix_str(f"{left} jobs left; {text}", refresh=False)
        if not self._in_log:
            self._update()

    def _follow(self) -> None:
        while not self._over.wait(_SECONDS_IN_A_LOG if self._in_log else _SECONDS):
            self._update()

    def _update(self) -> None:
        # A job that failed begins anew: the bar then waits for it.
        self.bar.n = max(self.bar.n, self.count())
        if self._in_log:
            print(self.bar, file=sys.stderr, flush=True)
        else:
            self.bar.refresh()


def _epochs(folder: Path) -> int:
    """Return the completed epochs of the training that has got furthest."""
    return max((CheckpointFolder(run).epochs() for run in folder.glob("*/")), default=0)
