import io
import sys
import time

import pytest

from imbmargin.benchmark import progress
from imbmargin.benchmark.jobs import DataSpec, Job
from imbmargin.benchmark.progress import Progress
from imbmargin.checkpoint import CheckpointFolder

JOBS = [Job(DataSpec("iris"), "ERM", seed=seed, epochs=10) for seed in range(3)]


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Screen(), io.StringIO()])
def test_epochs_are_read_off_the_checkpoints(tmp_path, stream, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_SECONDS_IN_A_LOG", 0.01)
    monkeypatch.setattr(sys, "stderr", stream)
    folders = {job: tmp_path / str(job.seed) for job in JOBS}
    CheckpointFolder(folders[JOBS[1]] / "run").write(4, {})
    with Progress(folders, [JOBS[0]]) as shown:
        assert shown.bar.initial == shown.count() == 14
        CheckpointFolder(folders[JOBS[1]] / "run").write(7, {})
        deadline = time.monotonic() + 10
        while shown.bar.n < 17 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert shown.bar.n == 17
        shown.finish(JOBS[2], "the last")
    assert shown.bar.n == 27
    text = stream.getvalue()
    assert "27/30" in text
    assert "1 jobs left; the last" in text
    assert ("\r" in text) == stream.isatty()


def test_a_log_gets_a_line_at_the_end_of_a_short_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress({JOBS[0]: tmp_path}, []) as shown:
        shown.finish(JOBS[0], "done")
        stream = sys.stderr
    (line,) = stream.getvalue().splitlines()
    assert "10/10" in line


def test_a_bar_never_goes_back(tmp_path):
    folders = {JOBS[0]: tmp_path}
    CheckpointFolder(tmp_path / "run").write(12, {})
    with Progress(folders, []) as shown:
        # Of a folder of another run, with more epochs than this one has.
        assert shown.count() == 10
        for path in tmp_path.glob("run/*"):
            path.unlink()
        shown._update()
        assert shown.bar.n == 10
