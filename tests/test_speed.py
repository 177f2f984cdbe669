"""The speed comparison runs; what it says of speed is not tested here."""

import json
from statistics import median

import pytest
import torch

from tests.speed.__main__ import CASES, main

CONTENDERS = {
    "tables": {
        *("bound", "bound fused", "hand-written", "skorch", "MLPClassifier"),
        *("imbmargin", "imbmargin mm"),
    },
    "images": {
        *("bound float32", "bound bfloat16", "published, 0 workers", "published, 2 workers"),
        *("skorch", "imbmargin float32", "imbmargin bfloat16"),
    },
    "losses": {
        name + weights
        for name in ("cross_entropy", "MM", "MM-LDAM", "LDAM")
        for weights in ("", " weighted")
    },
    "prediction": {
        *("forward", "skorch predict_proba"),
        *("imbmargin predict_proba", "imbmargin predict"),
    },
    "methods": {
        *("ERM", "MM", "mixup", "ERM, strong", "ERM, averaged", "BBN", "MW-Net", "meta sampler"),
    },
    "boosting": {
        *("LightGBM", "HistGradientBoosting"),
        *("LA-post-hoc, mlp", "LA-post-hoc, tabm", "MM-DRW, mlp"),
    },
    "search": {
        *("GridSearchCV, skorch", "GridSearchCV, skorch, n_jobs=2"),
        *("GridSearchCV, imbmargin", "BatchedGridSearchCV, imbmargin"),
    },
}


def check(comparison, rounds):
    raw = {name: found["raw"] for name, found in comparison["contenders"].items()}
    for name, found in comparison["contenders"].items():
        assert len(raw[name]) == rounds
        assert 0 < found["min"] <= found["median"] <= found["max"]
        assert found["median"] == median(raw[name])
    for reference, ratios in comparison["ratios"].items():
        assert ratios[reference]["median"] == 1
        for name, found in ratios.items():
            pairs = zip(raw[name], raw[reference], strict=True)
            assert found["raw"] == pytest.approx([value / base for value, base in pairs])
            assert found["median"] == pytest.approx(median(found["raw"]))


@pytest.mark.parametrize("case", CASES)
def test_a_case_runs(case, tmp_path, capsys):
    main([case, "--quick", "--rounds", "1", "--out", str(tmp_path)])
    content = json.loads((tmp_path / f"{case}.json").read_text(encoding="utf-8"))
    assert content["environment"].keys() >= {"torch", "cpu", "torch threads", "command", "date"}
    table = capsys.readouterr().out
    for comparison in content["comparisons"]:
        check(comparison, 1)
        found = comparison["contenders"].keys()
        if "memory" in comparison["title"]:
            assert found == {"imbmargin"}
        else:
            assert found | comparison["skipped"].keys() == CONTENDERS[case]
        assert all(f"| {name} " in table for name in found)


NOT_ON_CUDA = {"MLPClassifier"}
ONLY_ON_CUDA = {"images": {"published, 8 workers"}}


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_a_case_runs_on_a_cuda_device(case, tmp_path):
    options = ["--quick", "--rounds", "1", "--device", "cuda", "--out", str(tmp_path)]
    main([case, *options])
    content = json.loads((tmp_path / f"{case}.json").read_text(encoding="utf-8"))
    assert content["environment"]["gpu"] == torch.cuda.get_device_name()
    for comparison in content["comparisons"]:
        check(comparison, 1)
        found = comparison["contenders"].keys() | comparison["skipped"].keys()
        assert found == CONTENDERS[case] - NOT_ON_CUDA | ONLY_ON_CUDA.get(case, set())


def test_an_unknown_case_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["tabels"])
    assert "no such case: tabels; there are tables, images" in capsys.readouterr().err
