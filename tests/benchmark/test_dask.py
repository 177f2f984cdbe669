"""The benchmark on a real cluster of two worker processes."""

import os

from distributed import Client

from imbmargin.benchmark.cli import main
from imbmargin.benchmark.jobs import DataSpec, Job
from imbmargin.benchmark.runner import read_records, run_jobs
from tests.workers import KilledOnce

JOBS = [Job(DataSpec("wine"), method, seed, 4) for method in ("ERM", "MM-DRW") for seed in (0, 1)]


def scores(records):
    return {(r["job"]["method"], r["job"]["seed"]): r["scores"] for r in records}


def test_a_cluster_gives_the_results_of_this_process(cluster, tmp_path):
    address = cluster.scheduler_address
    there = run_jobs(JOBS, tmp_path / "there", dask=address)
    here = run_jobs(JOBS, tmp_path / "here")
    assert scores(there) == scores(here)
    assert len(read_records(tmp_path / "there")) == 4


def test_a_worker_that_is_killed_loses_no_result(cluster, tmp_path):
    jobs = [Job(DataSpec("wine"), "ERM", seed, 50) for seed in range(4)]
    with Client(cluster) as client:
        pids = client.run(os.getpid).values()
        client.register_plugin(KilledOnce(tmp_path / "killed"))
    records = run_jobs(jobs, tmp_path, dask=cluster.scheduler_address)
    assert int((tmp_path / "killed").read_text()) in pids
    assert [record["status"] for record in records] == ["done"] * 4
    assert [len(record["history"]) for record in records] == [50] * 4


def test_no_scheduler_is_one_line(tmp_path, capsys, monkeypatch):
    import dask

    options = ["--methods", "ERM", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path)]
    with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        arguments = ["benchmark", "--data", "iris", *options, "--dask", "tcp://127.0.0.1:9"]
        assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("imbmargin: error: ")
    assert "127.0.0.1:9" in error
