import errno
import os
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from imbmargin import make_long_tailed
from imbmargin.data import cifar, images
from imbmargin.datasets import load_cifar

NAMES = [f"class{i}" for i in range(10)]


@pytest.fixture
def small(monkeypatch):
    """CIFAR with 8 training and 2 test images of each class."""
    monkeypatch.setattr(cifar, "_ROWS", {"training": 80, "test": 20})


@pytest.fixture
def folder(tmp_path, small):
    rng = np.random.default_rng(0)
    for part, n in (("train", 8), ("test", 2)):
        for name in NAMES:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def write_batches(root, monkeypatch):
    """Write batches in the published format, small ones, with their own checksums."""
    base = root / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        entry = {
            "data": rng.integers(0, 255, (20, 3 * 32 * 32), dtype=np.uint8),
            "labels": [i % 10 for i in range(20)],
        }
        (base / name).write_bytes(pickle.dumps(entry))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    files = [[name, datasets.utils.calculate_md5(base / name)] for name in [*names, "batches.meta"]]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", files[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", files[5:6])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": files[6][1]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return base


def test_folders_are_loaded_with_their_own_parts(folder):
    data = load_cifar(folder)
    assert data.X_train.shape == (80, 3, 8, 8)
    assert data.X_test.shape == (20, 3, 8, 8)
    assert sorted(set(data.y_train)) == NAMES
    assert data.name == "cifar10"


def test_only_chosen_images_are_decoded(folder):
    (folder / "train" / "class0" / "7.png").write_bytes(b"no image")
    assert len(load_cifar(folder, choose=lambda y: np.array([0, 8, 16])).X_train) == 3
    with pytest.raises(ValueError, match=r"7\.png cannot be read"):
        load_cifar(folder)


def test_published_batches_keep_their_order(tmp_path, monkeypatch):
    write_batches(tmp_path, monkeypatch)
    data = load_cifar(tmp_path)
    assert data.X_train.shape == (100, 3, 32, 32)
    assert data.y_train[:11].tolist() == [*NAMES, "class0"]
    original = datasets.CIFAR10(str(tmp_path))
    np.testing.assert_array_equal(data.X_train[3].transpose(1, 2, 0), original.data[3])
    X, y = make_long_tailed(data.X_train, data.y_train, imbalance_ratio=5, protocol="ldam")
    assert np.unique(y, return_counts=True)[1].tolist()[::9] == [10, 2]
    assert len(X) == len(y)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Let torchvision fetch an archive of a folder over HTTP, from this computer."""
    served = tmp_path / "served"
    served.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()

        def publish(kind, base):
            archive = served / kind.filename
            with tarfile.open(archive, "w:gz") as file:
                file.add(base, kind.base_folder)
            url = f"http://127.0.0.1:{server.server_port}/{kind.filename}"
            monkeypatch.setattr(kind, "url", url)
            monkeypatch.setattr(kind, "tgz_md5", datasets.utils.calculate_md5(archive))

        yield publish
        server.shutdown()


def test_what_is_asked_for_is_fetched_once(tmp_path, serve, monkeypatch):
    published, root = tmp_path / "published", tmp_path / "data" / "new"
    published.mkdir()
    serve(datasets.CIFAR10, write_batches(published, monkeypatch))
    fetched = load_cifar(root, download=True)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/nowhere")
    for again in (load_cifar(root, download=True), load_cifar(root)):
        np.testing.assert_array_equal(again.X_train, fetched.X_train)
    np.testing.assert_array_equal(fetched.X_test, load_cifar(published).X_test)
    by_hand = tmp_path / "by hand"
    by_hand.mkdir()
    (root / datasets.CIFAR10.filename).rename(by_hand / datasets.CIFAR10.filename)
    np.testing.assert_array_equal(load_cifar(by_hand, download=True).X_test, fetched.X_test)
    assert fetched.y_train[:11].tolist() == [*NAMES, "class0"]


def test_cifar_100_has_its_fine_labels(tmp_path, serve, monkeypatch):
    kind, names = datasets.CIFAR100, [f"fine{i}" for i in range(100)]
    base = tmp_path / kind.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    entry = {
        "data": rng.integers(0, 255, (200, 3 * 32 * 32), dtype=np.uint8),
        "fine_labels": [i % 100 for i in range(200)],
        "coarse_labels": [i % 20 for i in range(200)],
    }
    for name in ("train", "test"):
        (base / name).write_bytes(pickle.dumps(entry))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    md5 = {name: datasets.utils.calculate_md5(base / name) for name in ("train", "test", "meta")}
    monkeypatch.setattr(kind, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5["meta"]})
    serve(kind, base)
    data = load_cifar(tmp_path / "new", "cifar100", download=True)
    assert data.X_train.shape == data.X_test.shape == (200, 3, 32, 32)
    assert data.y_train.tolist() == names * 2


def test_what_cannot_be_fetched_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/nowhere")
    with pytest.raises(
        OSError,
        match=r"cifar10 could not be fetched from http.*nowhere \(.*put cifar-10-python.tar",
    ):
        load_cifar(tmp_path, download=True)


def test_a_damaged_batch_is_an_error(tmp_path, monkeypatch):
    base = write_batches(tmp_path, monkeypatch)
    (base / "data_batch_2").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"missing files or damaged .*copy it again, or pass down"):
        load_cifar(tmp_path)


def test_a_half_copied_folder_is_an_error(folder):
    (folder / "train" / "class3" / "5.png").unlink()
    with pytest.raises(
        ValueError, match=r"has 7 training images of class 'class3' and 79 in all, cifar10 has 8 of"
    ):
        load_cifar(folder)


def test_a_folder_of_another_data_set_is_an_error(folder):
    with pytest.raises(ValueError, match=r"has 10 classes in its training part, cifar100 has 100"):
        load_cifar(folder, "cifar100")


def test_a_missing_test_part_or_folder_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no cifar10: it needs train/ and test/"):
        load_cifar(folder / "train")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_cifar(tmp_path / "none")
    with pytest.raises(ValueError, match=r"dataset must be one of \['cifar10', 'cifar100'\]"):
        load_cifar(folder, "cifar1000")


def test_the_data_set_is_guessed_from_the_folder(folder, tmp_path, monkeypatch):
    (folder / "train" / ".cache").mkdir()
    assert cifar.guess_cifar(folder) == "cifar10"
    (folder / "train").rename(folder / "Train")
    assert cifar.guess_cifar(folder) == "cifar10"
    (folder / "Train").rename(folder / "train")
    batches = tmp_path / "batches"
    batches.mkdir()
    with pytest.raises(ValueError, match=r"neither 10 nor 100 class folders in train/; name the"):
        cifar.guess_cifar(batches)
    write_batches(batches, monkeypatch)
    assert cifar.guess_cifar(batches) == "cifar10"
    (batches / "cifar-100-python").mkdir()
    with pytest.raises(ValueError, match="has both data sets"):
        cifar.guess_cifar(batches)


def test_a_cache_holds_the_decoded_images(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    plain = load_cifar(folder)
    first = load_cifar(folder, cache_dir=cache)
    np.testing.assert_array_equal(first.X_train, plain.X_train)
    np.testing.assert_array_equal(first.X_test, plain.X_test)
    [file] = cache.iterdir()
    monkeypatch.setattr(images, "_decode", None)
    again = load_cifar(folder, cache_dir=cache, choose=lambda y: np.array([5, 3]))
    np.testing.assert_array_equal(again.X_train, plain.X_train[[5, 3]])
    # All stays on disk until it is used.
    assert isinstance(again.X_test, np.memmap)
    assert isinstance(again.X_train, np.memmap)
    np.testing.assert_array_equal(again.X_test, plain.X_test)
    monkeypatch.undo()
    monkeypatch.setattr(cifar, "_ROWS", {"training": 80, "test": 20})
    Image.new("RGB", (8, 8)).save(folder / "test" / "class0" / "0.png")
    assert (load_cifar(folder, cache_dir=cache).X_test[0] == 0).all()
    assert len(list(cache.glob("images-*"))) == 2
    assert file.is_file()


def test_decoding_that_fails_leaves_no_cache(folder, tmp_path):
    (folder / "train" / "class0" / "7.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"7\.png cannot be read"):
        load_cifar(folder, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("kept", [0, 50, -1])
def test_a_damaged_cache_is_named(folder, tmp_path, kept):
    load_cifar(folder, cache_dir=tmp_path / "cache")
    [file] = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{file.name} of the cache is damaged: .*; remove it"):
        load_cifar(folder, cache_dir=tmp_path / "cache")
    file.unlink()
    assert len(load_cifar(folder, cache_dir=tmp_path / "cache").X_train) == 80


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the room cannot be taken")
def test_a_full_disk_under_the_cache_is_an_error(folder, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=r"cache_dir .*cache cannot hold .*No space left.*; make"):
        load_cifar(folder, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_made_is_an_error(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cache_dir .*file cannot hold the images: .*pass another"):
        load_cifar(folder, cache_dir=tmp_path / "file")
