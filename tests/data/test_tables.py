"""Tables are read as a person would: numbers, words and dates, whatever stands among them."""

import re

import numpy as np
import pandas as pd
import pytest

from imbmargin.data.tables import as_numbers, plain_columns, read_frame

NUMBERS = [f"{number:.2f}" for number in np.linspace(3, 99, 30)]
UNIX = 1.7e9


def read(words):
    """Return a column of words as it is read."""
    return plain_columns(pd.DataFrame({"a": pd.Series(words, dtype=object)}), "t.csv")["a"]


@pytest.mark.parametrize(
    ("others", "remark"),
    [
        (["?"], "'?' taken for missing"),
        (["n/a?", "-"], "'n/a?', '-' taken for missing"),
        (["inf"], "'inf' taken for missing"),
        ([], "nothing but numbers"),
    ],
)
def test_what_is_no_number_among_numbers_is_missing(others, remark):
    message = f"columns of t.csv .* read as numbers, .*: 'a' ({remark}). Leave cells"
    message = re.escape(message).replace(r"\.\*", ".*")
    with pytest.warns(UserWarning, match=message):
        column = read([*NUMBERS, *others, None])
    expected = [float(number) for number in NUMBERS] + [np.nan] * (len(others) + 1)
    np.testing.assert_array_equal(column, expected)


def test_only_some_of_the_missing_values_are_named():
    numbers = [str(number) for number in range(60)]
    with pytest.warns(UserWarning, match=r"\('a', 'b', 'c' and 2 more taken for missing\)"):
        read([*numbers, *"abcde"])


@pytest.mark.parametrize("others", [[], ["?"]])
def test_a_comma_is_a_decimal_point(others):
    commas = [number.replace(".", ",") for number in NUMBERS]
    with pytest.warns(UserWarning, match="'a' .the comma of '3,00' taken for a decimal point"):
        column = read([*commas, *others])
    assert column.dropna().tolist() == [float(number) for number in NUMBERS]


def test_a_decimal_comma_in_one_cell():
    with pytest.warns(UserWarning, match="comma of '12,50' taken for a decimal point"):
        assert read([*NUMBERS, "12,50"]).iloc[-1] == 12.5


def test_a_comma_before_three_digits_stands_between_thousands():
    numbers = [10 + 317 * 10**i for i in range(4) for _ in range(3)] + [*range(10), 7_654_321]
    with pytest.warns(UserWarning, match="comma of '3,180' taken for one between thousands"):
        assert read([f"{number:,}" for number in numbers]).tolist() == numbers


def test_one_warning_names_all_columns_of_a_file():
    X = pd.DataFrame({"a": [*NUMBERS, "?"], "b": [*"xyz" * 10, "x"], "c": [*NUMBERS, "1,5"]})
    with pytest.warns(UserWarning, match="read as numbers") as caught:
        plain = plain_columns(X, "t.csv")
    assert len(caught) == 1
    assert "'a' ('?' taken for missing); 'c' (the comma of '1,5'" in str(caught[0].message)
    assert plain["b"].tolist() == X["b"].tolist()


@pytest.mark.parametrize(
    "words",
    [
        ["A1", "7"],
        ["1", "2", "3", "?"],
        [*NUMBERS, *"abcdef"],
        ["1,2", "1,3", "1,2,3", "2,4"] * 5,
        ["Jan", "May", "Jun"],
        ["20-30", "10-12", "1-5"],
        ["2024-05", "2024-06"],
        ["20240501", "20240502", "?"],
        ["2024", "2025", "?"],
        ["1.2.3", "192.168.1.1", "12:30"],
        ["AB-2024-05-01", "AB-2024-05-02"],
        ["2024-05-01", "x", "y", "z"],
    ],
)
def test_codes_and_other_words_stay_words(words):
    assert read(words).tolist() == words


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d",
        "%d.%m.%Y",
        "%m/%d/%Y %H:%M",
        "%d-%b-%Y",
        "%d %B %Y",
        "%B %d, %Y",
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M:%SZ",
    ],
)
@pytest.mark.parametrize("others", [[], ["?"]])
def test_dates_are_refused(form, others):
    days = pd.date_range("2026-01-01", periods=40, freq="33h").strftime(form)
    with pytest.raises(ValueError, match=r"^columns \['a'\] of t.csv hold dates; turn them into n"):
        read([*days, *others])


def test_dates_whose_offset_changes_over_the_year_are_refused():
    days = pd.date_range("2026-03-01", periods=40, tz="Europe/Amsterdam")
    with pytest.raises(ValueError, match="hold dates"):
        read([str(day) for day in days])


def write(path, frame, **options):
    frame.to_csv(path, **options)
    return path


def test_row_numbers_are_left_out(tmp_path):
    frame = pd.DataFrame({"a": [5, 6, 7]})
    path = write(tmp_path / "t.csv", frame)
    with pytest.warns(
        UserWarning, match=r"first columns of .*t.csv, \['Unnamed: 0'\], count the r"
    ):
        assert read_frame(path).equals(frame)
    # Read without heed, and saved once more.
    path = write(path, pd.read_csv(path))
    with pytest.warns(UserWarning, match=r"\['Unnamed: 0.1', 'Unnamed: 0'\], count the rows"):
        assert read_frame(path).equals(frame)


def test_other_columns_are_kept(tmp_path):
    frame = pd.DataFrame({"a": [5, 6, 7], "Unnamed: 0": [0, 1, 2]})
    path = tmp_path / "t.csv"
    assert len(read_frame(write(path, frame, index=False)).columns) == 2
    assert len(read_frame(write(path, frame.set_index("a"))).columns) == 2
    assert len(read_frame(write(path, frame, index_label="row")).columns) == 3
    assert len(read_frame(write(path, frame.set_axis([1, 2, 3]))).columns) == 3
    frame.iloc[:, ::-1].to_parquet(tmp_path / "t.parquet")
    assert len(read_frame(tmp_path / "t.parquet").columns) == 2


def test_a_long_column_with_a_word_near_its_end(tmp_path):
    # Far enough that pandas would read it in parts, and find numbers in the first.
    frame = pd.DataFrame({"a": [*map(str, range(300_000)), "?"], "b": 0})
    column = read_frame(write(tmp_path / "t.csv", frame, index=False))["a"]
    assert set(map(type, column)) == {str}


def test_differences_of_large_numbers_are_kept():
    rng = np.random.default_rng(0)
    time = UNIX + rng.normal(0, 100, 80)
    train, test = np.c_[time[:50], time[:50] - UNIX], np.c_[time[50:], time[50:] - UNIX]
    train[0, 0] = np.nan
    X_train, X_test = as_numbers(train, test, [0, 1], [])
    middle = np.median(train[1:, 0]) - UNIX
    np.testing.assert_allclose(X_train[1:, 0], train[1:, 1] - middle, atol=1e-4)
    np.testing.assert_allclose(X_test[:, 0], test[:, 1] - middle, atol=1e-4)
    assert X_train[0, 0] == 0


def test_ordinary_columns_are_cast_and_nothing_else():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=60), rng.normal(1e6, 1e4, 60), np.full(60, 0.1), np.zeros(60)]
    columns += [
        rng.integers(1990, 2026, 60),
        rng.normal(0.9967, 0.003, 60),
        -(10 ** rng.random(60)),
    ]
    columns += [np.where(np.arange(60) % 9, UNIX, 0), np.where(np.arange(60) % 2, 0.0, -0.0)]
    table = np.c_[*columns]
    parts = as_numbers(table[:40], table[40:], list(range(table.shape[1])), [])
    expected = table.astype(np.float32)
    assert np.concatenate(parts).tobytes() == expected.tobytes()
