"""What parameters are described by: it tells values apart, and is the same in every process."""

import json
import logging
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from skorch.callbacks import EarlyStopping
from torch import nn

from imbmargin.description import checksum, describe_value

ROOT = Path(__file__).parents[1]


class Plain:
    def __init__(self, **attributes):
        vars(self).update(attributes)


@dataclass(frozen=True, slots=True)
class Slots:
    size: int


def bound_to(value):
    def inner():
        return value

    return inner


def linear(fill):
    module = nn.Linear(2, 1)
    for parameter in module.parameters():
        nn.init.constant_(parameter, fill)
    return module


# Each kind with two values of it.
PAIRS = {
    "objects": lambda n: Plain(size=n),
    "nested objects": lambda n: Plain(inner=[Plain(size={"a": n})]),
    "slots": Slots,
    "partial": lambda n: partial(print, n),
    "keywords": lambda n: partial(print, end=str(n)),
    "closures": bound_to,
    "bound methods": lambda n: Plain(size=n).__init__,
    "lambdas": lambda n: (lambda: 1) if n else (lambda: 2),
    "sets": lambda n: {"a", "b", str(n)},
    "arrays": lambda n: np.full(3, n),
    "types of arrays": lambda n: np.zeros(3, dtype="i8" if n else "f8"),
    "shapes of arrays": lambda n: np.zeros((2, 3) if n else (3, 2)),
    "arrays of objects": lambda n: np.array([None, "a", n], dtype=object),
    "tensors": lambda n: torch.full((2,), n, dtype=torch.bfloat16),
    "tables": lambda n: pd.DataFrame({"a": [n, 2], "b": ["x", "y"]}),
    "weights": linear,
    "dropout": lambda n: nn.Sequential(linear(0), nn.Dropout(n / 2)),
    "callbacks": lambda n: ("stop", EarlyStopping(patience=n)),
    "paths": lambda n: Path(str(n)),
    "dtypes": lambda n: torch.float32 if n else torch.float64,
    "bytes": lambda n: bytes([n]),
    "numbers": lambda n: 1j * n,
    "long ones": lambda n: Plain(rows=list(range(1000 + n))),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_values_are_told_apart_and_copies_are_not(kind):
    make = PAIRS[kind]
    one, other = (describe_value(make(n)) for n in (0, 1))
    assert one != other
    assert describe_value(make(0)) == one
    assert json.loads(json.dumps(one)) == one
    assert "0x" not in json.dumps(one)
    assert len(json.dumps(one)) <= 400


def test_what_no_two_values_can_be_told_apart_by():
    for value in (threading.Lock(), object(), (i for i in []), logging.getLogger("name")):
        assert describe_value(value) == describe_value(value)
        assert "0x" not in json.dumps(describe_value(value))
    # Where a generator stands changes from one fit to the next.
    states = [np.random.RandomState(seed) for seed in (0, 1)]
    assert describe_value(states[0]) == describe_value(states[1])
    assert describe_value(float("nan")) == describe_value(np.float32("nan"))


def test_objects_that_refer_to_themselves():
    ring = Plain(size=1)
    ring.other = Plain(back=ring)
    assert describe_value(ring) == {
        "tests.test_description.Plain": {
            "size": 1,
            "other": {"tests.test_description.Plain": {"back": "object 0"}},
        }
    }


def test_a_memory_map_is_not_read(tmp_path):
    array = np.memmap(tmp_path / "rows", dtype="f4", mode="w+", shape=(3, 2))
    assert describe_value(array) == [str(tmp_path / "rows"), 0, "<f4", [3, 2]]


def test_descriptions_are_the_same_in_another_process():
    code = (
        "import json; from tests.test_description import PAIRS, describe_value;"
        "print(json.dumps({k: describe_value(make(1)) for k, make in PAIRS.items()}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = {kind: describe_value(make(1)) for kind, make in PAIRS.items()}
    assert json.loads(found.stdout) == here


def test_checksums_take_any_tensor():
    weights = torch.randn(4, 3, 2, 2, requires_grad=True)
    last = weights.to(memory_format=torch.channels_last)
    assert checksum(weights) == checksum(last)
    assert checksum(torch.tensor(1.0)) != checksum(torch.tensor([1.0]))
