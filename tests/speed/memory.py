"""Growth of the peak memory in a fit, in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tests.speed.measure import Sample

ROOT = Path(__file__).parents[2]


def peak_in_child(name: str, work: Any) -> Sample:
    """Fit a contender of the tables in a process of its own."""
    given = {"name": name, "work": asdict(work), "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "tests.speed.memory", json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    grown, array = json.loads(done.stdout)
    return Sample(max(grown, 1) / array, {"growth, MB": grown / 1e6, "array, MB": array / 1e6})


def measure(name: str, work: dict[str, int], threads: int) -> tuple[int, int]:
    """Return the growth of the peak over what is resident before fit, and the array, in bytes."""
    # This module is imported by the tables' own.
    from tests.speed.tables import FITS, Work

    torch.set_num_threads(threads)
    size = Work(**work)
    small = replace(size, rows=2 * size.batch)
    FITS[name](*small.make_data(), small)
    X, y = size.make_data()
    reset_peak()
    before = read_status("VmRSS")
    FITS[name](X, y, size)
    return read_status("VmHWM") - before, X.nbytes


def reset_peak() -> None:
    """Let the peak start anew, so that it is not one of the time before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_status(field: str) -> int:
    """Return a field of the process's status (Linux), in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = next(line for line in lines if line.startswith(field + ":"))
    return 1024 * int(found.split()[1])


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
