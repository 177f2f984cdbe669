import time

from imbmargin.benchmark import progress
from imbmargin.benchmark.jobs import DataSpec, Job
from imbmargin.benchmark.progress import Progress
from imbmargin.checkpoint import CheckpointFolder

JOBS = [Job(DataSpec("iris"), "ERM", seed=seed, epochs=10) for seed in range(3)]


def test_epochs_are_read_off_the_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS", 0.01)
    folders = {job: tmp_path / str(job.seed) for job in JOBS}
    CheckpointFolder(folders[JOBS[1]]).write(4, {})
    with Progress(folders, [JOBS[0]]) as shown:
        assert shown.bar.initial == shown.count() == 14
        CheckpointFolder(folders[JOBS[1]]).write(7, {})
        deadline = time.monotonic() + 10
        while shown.bar.n < 17 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert shown.bar.n == 17
        shown.finish(JOBS[2], "the last")
        assert shown.bar.n == 27
    assert "1 jobs left; the last" in capsys.readouterr().err


def test_a_bar_never_goes_back(tmp_path):
    folders = {JOBS[0]: tmp_path}
    CheckpointFolder(tmp_path).write(12, {})
    with Progress(folders, []) as shown:
        # Of a folder of another run, with more epochs than this one has.
        assert shown.count() == 10
        for path in tmp_path.iterdir():
            path.unlink()
        shown._update()
        assert shown.bar.n == 10
