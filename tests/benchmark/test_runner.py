import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from joblib import parallel_config

from imbmargin import MaxMarginClassifier, checkpoint
from imbmargin.benchmark import epochs, runner
from imbmargin.benchmark.jobs import DataSpec, Job
from imbmargin.benchmark.runner import read_record, read_records, run_jobs

DIGITS, IRIS = DataSpec("digits", imbalance="long_tailed"), DataSpec("iris")
JOBS = [Job(IRIS, "ERM", seed, epochs=2) for seed in range(2)]


@pytest.fixture
def counted(monkeypatch):
    """Count the jobs that are really run."""
    ran = []

    def run_job(job, callbacks=None, checkpoint_dir=None):
        ran.append(job)
        if job.method == "MM":
            return {**record(job), "status": "failed", "error": "ValueError: no", "traceback": ""}
        return record(job)

    def record(job):
        return {
            "format": 1,
            "job": {"data": {"source": "iris"}, "method": job.method, "seed": job.seed},
            "status": "done",
            "scores": {"balanced_accuracy": 0.5},
        }

    monkeypatch.setattr(runner, "run_job", run_job)
    return ran


def test_a_job_that_is_there_is_not_run_again(tmp_path, counted):
    run_jobs(JOBS[:1], tmp_path, command="first")
    records = run_jobs(JOBS, tmp_path, command="second")
    assert counted == JOBS
    assert [record["command"] for record in records] == ["first", "second"]


def test_a_failed_job_does_not_stop_the_others_and_is_tried_again(tmp_path, counted):
    failing = Job(IRIS, "MM", 0, 2)
    records = run_jobs([failing, *JOBS], tmp_path)
    assert [record["status"] for record in records] == ["failed", "done", "done"]
    run_jobs([failing, *JOBS], tmp_path)
    assert counted == [failing, *JOBS, failing]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 0, "job": 1}'])
def test_a_broken_file_counts_as_not_there(tmp_path, counted, text):
    path = tmp_path / JOBS[0].file_name
    path.write_text(text)
    assert read_record(path) is None
    run_jobs(JOBS[:1], tmp_path)
    assert counted == JOBS[:1]
    assert read_record(path)["status"] == "done"


def test_a_run_that_is_stopped_leaves_whole_files(tmp_path, counted, monkeypatch):
    run_jobs(JOBS[:1], tmp_path)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(JOBS, tmp_path)
    assert [record["job"]["seed"] for record in read_records(tmp_path)] == [0]


def test_jobs_in_parallel_give_the_same_as_one_by_one(tmp_path):
    alone = run_jobs(JOBS, tmp_path / "alone", n_jobs=1)
    together = run_jobs(JOBS, tmp_path / "together", n_jobs=2)
    assert [r["scores"] for r in alone] == [r["scores"] for r in together]
    assert [r["history"] for r in alone] == [r["history"] for r in together]
    names = [sorted(p.name for p in (tmp_path / f).iterdir()) for f in ("alone", "together")]
    assert names[0] == names[1] == sorted(job.file_name for job in JOBS)
    json.loads((tmp_path / "alone" / JOBS[0].file_name).read_text())


def test_a_job_that_was_broken_off_goes_on(tmp_path, monkeypatch):
    job = Job(IRIS, "MM-DRW", 0, epochs=6)
    begun = []

    def begin(bar, net, **kwargs):
        begun.append(len(net.history))
        if begun == [1, 2, 3, 4]:
            raise SystemExit(143)

    monkeypatch.setattr(epochs.EpochBar, "on_epoch_begin", begin)
    with pytest.raises(SystemExit):
        run_jobs([job], tmp_path / "broken")
    (folder,) = (tmp_path / "broken" / "checkpoints").glob("*/*")
    assert len(list(folder.iterdir())) == 2
    (resumed,) = run_jobs([job], tmp_path / "broken")
    assert begun == [1, 2, 3, 4, 4, 5, 6]
    assert not (tmp_path / "broken" / "checkpoints").exists()
    (straight,) = run_jobs([job], tmp_path / "straight")
    for key in ("scores", "per_class_error", "history"):
        assert resumed[key] == straight[key]


@pytest.fixture
def epochs_begun(monkeypatch):
    """Take note of each epoch that is really run, but for those of second stages."""
    begun = []
    monkeypatch.setattr(epochs.EpochBar, "on_epoch_begin", lambda bar, *_, **__: begun.append(bar))
    return begun


SAME = ("scores", "per_class_error", "confusion", "history", "best_epoch", "margins")


def parts(record):
    assert record["status"] == "done", record
    return {name: record.get(name) for name in SAME}


@pytest.mark.parametrize("order", [["ERM", "cRT", "tau-norm"], ["LA-post-hoc", "ERM"]])
def test_what_comes_after_the_same_training_shares_it(tmp_path, epochs_begun, order):
    jobs = [Job(DIGITS, method, 0, epochs=2) for method in order]
    together = run_jobs(jobs, tmp_path / "together")
    assert len(epochs_begun) == 2
    names = sorted(path.name for path in (tmp_path / "together").iterdir())
    assert names == sorted(job.file_name for job in jobs)
    for job, record in zip(jobs, together, strict=True):
        (alone,) = run_jobs([job], tmp_path / job.method)
        assert parts(alone) == parts(record)
    assert len(epochs_begun) == 2 * (1 + len(order))


def test_in_parallel_a_training_is_done_before_others_take_it(tmp_path, monkeypatch):
    methods = ["LA-post-hoc", "ERM", "cRT", "MM", "MM-LA", "LDAM"]
    jobs = [Job(DIGITS, method, 0, epochs=2) for method in methods]
    trained_by = {"ERM": "LA-post-hoc", "cRT": "LA-post-hoc", "MM-LA": "MM"}
    done = []

    def run_job(job, *args):
        assert trained_by.get(job.method, "nobody") in [*done, "nobody"]
        time.sleep(0.05)
        done.append(job.method)
        return {}

    monkeypatch.setattr(runner, "run_job", run_job)
    with parallel_config(backend="threading"):
        results = list(runner._run_parallel(jobs, 4, tmp_path))
    assert sorted(job.method for job, _ in results) == sorted(methods) == sorted(done)


def test_the_seconds_of_a_shared_training_count_for_each(tmp_path):
    erm, after = run_jobs([Job(DIGITS, name, 0, 3) for name in ("ERM", "NCM")], tmp_path)
    assert after["seconds"]["fit"] > erm["seconds"]["fit"] > 0


def test_networks_that_differ_do_not_meet(tmp_path, epochs_begun):
    # On a table ERM is an ensemble, and what looks into the network takes another one.
    jobs = [Job(IRIS, method, 0, epochs=2) for method in ("ERM", "LA-post-hoc", "cRT", "tau-norm")]
    assert len({job.training for job in jobs}) == 1
    assert all(parts(record) for record in run_jobs(jobs, tmp_path))
    assert len(epochs_begun) == 4


def test_a_training_is_kept_until_all_that_share_it_are_done(tmp_path, monkeypatch, epochs_begun):
    jobs = [Job(DIGITS, method, 0, epochs=2) for method in ("ERM", "NCM")]
    run_job, failing = runner.run_job, ["NCM"]

    def fail(job, *args):
        record = run_job(job, *args)
        return {**record, "status": "failed", "error": "no"} if job.method in failing else record

    monkeypatch.setattr(runner, "run_job", fail)
    run_jobs(jobs, tmp_path)
    assert len(list(tmp_path.glob("checkpoints/*/*/*.safetensors"))) == 2
    failing.clear()
    records = run_jobs(jobs, tmp_path)
    assert [record["status"] for record in records] == ["done", "done"]
    assert len(epochs_begun) == 2
    assert not (tmp_path / "checkpoints").exists()
    assert np.isfinite(records[1]["scores"]["balanced_accuracy"])


@pytest.mark.parametrize("method", ["ERM", "RandomOverSampler+MLP"])
@pytest.mark.parametrize("small", [True, False])
def test_ctrl_c_ends_the_run_and_leaves_no_half_of_a_training(tmp_path, monkeypatch, method, small):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    step = MaxMarginClassifier.train_step

    def pressed(self, *args, **kwargs):
        if len(self.history) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(MaxMarginClassifier, "train_step", pressed)
            with pytest.raises(KeyboardInterrupt):
                run_jobs([Job(IRIS, method, 0, epochs=5)], tmp_path, small=small)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_records(tmp_path) == []
    (record,) = run_jobs([Job(IRIS, method, 0, epochs=5)], tmp_path, small=small)
    assert record["status"] == "done"


def test_a_job_that_is_asked_for_twice_is_run_once(tmp_path, counted):
    assert len(run_jobs([JOBS[0], JOBS[0]], tmp_path)) == 1
    assert counted == JOBS[:1]


def test_a_file_that_holds_no_result_is_named(tmp_path, counted):
    run_jobs(JOBS, tmp_path)
    (tmp_path / JOBS[0].file_name).write_text("{")
    with pytest.warns(UserWarning, match=f"{JOBS[0].file_name} is damaged, or no result") as caught:
        records = read_records(tmp_path)
    assert [record["job"]["seed"] for record in records] == [1]
    assert len(caught) == 1


ENDLESS = [Job(IRIS, method, 0, epochs=10**6) for method in ("ERM", "MM")]

PARALLEL = """
import sys
from pathlib import Path

from imbmargin.benchmark.jobs import DataSpec, Job
from imbmargin.benchmark.runner import run_jobs

jobs = [Job(DataSpec("iris"), method, 0, epochs=10**6) for method in ("ERM", "MM")]
run_jobs(jobs, Path(sys.argv[1]), n_jobs=2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be caught")
def test_sigterm_ends_the_workers_too_and_a_rerun_goes_on(tmp_path, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", PARALLEL, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while len({file.parent for file in tmp_path.glob("checkpoints/*/*/*.safetensors")}) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.terminate()
        # Workers write into the same pipe, which ends when the last of them has ended.
        process.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM
    begun = []

    def begin(bar, net, **kwargs):
        begun.append(len(net.history))
        raise SystemExit

    monkeypatch.setattr(epochs.EpochBar, "on_epoch_begin", begin)
    for job in ENDLESS:
        with pytest.raises(SystemExit):
            run_jobs([job], tmp_path)
    assert len(begun) == 2
    assert min(begun) > 1


def test_the_handler_of_sigterm_is_the_one_of_before(tmp_path, monkeypatch):
    handlers = []

    def run_parallel(jobs, n_jobs, checkpoints):
        handlers.append(signal.getsignal(signal.SIGTERM))
        yield from runner._run(jobs, 1, checkpoints, None)

    monkeypatch.setattr(runner, "_run_parallel", run_parallel)
    before = signal.getsignal(signal.SIGTERM)

    def run(name, n_jobs=2):
        run_jobs([Job(IRIS, "ERM", 0, epochs=1)], tmp_path / name, n_jobs)

    run("caught")
    assert handlers.pop() is not before
    assert signal.getsignal(signal.SIGTERM) is before
    # Only the main thread can catch signals.
    thread = threading.Thread(target=run, args=["thread"])
    thread.start()
    thread.join()
    assert handlers.pop() is before
    assert len(read_records(tmp_path / "thread")) == 1


def test_a_handler_of_the_user_stays(tmp_path, counted):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        with runner._ended_by_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [True]
