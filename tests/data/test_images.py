import re
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from imbmargin.data import images
from imbmargin.data.images import (
    cached_images,
    digest_of,
    find_parts,
    find_test_folder,
    list_images,
    read_images,
)
from imbmargin.datasets import load_image_folder


def write_classes(folder, n=2, suffix=".png"):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 6), (40 * i, 0, 0)).save(folder / name / f"{i}{suffix}")


def one(path, size=None):
    """Return the pixels of one image, channels last."""
    return read_images(np.array([str(path)]), size)[0].transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("training", "test"),
        ("Training", "TESTING"),
        ("train", "valid"),
        ("train", "validation"),
        ("training", "Val"),
    ],
)
def test_parts_are_known_by_their_usual_names(tmp_path, train, test):
    write_classes(tmp_path / train, n=3)
    write_classes(tmp_path / test, n=1)
    assert find_test_folder(tmp_path) == tmp_path / test
    found = list_images(tmp_path)
    assert [part[1].tolist() for part in found] == [["a"] * 3 + ["b"] * 3, ["a", "b"]]
    assert len(load_image_folder(tmp_path).X_test) == 2


def test_the_test_part_comes_before_that_for_validation(tmp_path):
    for name in ("TRAIN", "testing", "validation"):
        write_classes(tmp_path / name)
    assert find_parts(tmp_path) == {
        "train": tmp_path / "TRAIN",
        "test": tmp_path / "testing",
        "val": tmp_path / "validation",
    }
    assert find_test_folder(tmp_path) == tmp_path / "testing"


@pytest.mark.parametrize(
    ("folders", "part"),
    [
        (["train", "training"], "train"),
        (["train", "test", "testing"], "test"),
        (["train", "test", "valid", "validation"], "val"),
    ],
)
def test_two_folders_for_a_part_are_an_error(tmp_path, folders, part):
    for name in folders:
        write_classes(tmp_path / name)
    message = f"has the folders {folders[-2:]}, and each may be its {part} part; leave one"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_image_folder(tmp_path)


def test_without_a_training_part_such_names_are_classes(tmp_path):
    for name in ("valid", "validation", "Test"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    train, test = list_images(tmp_path)
    assert train[1].tolist() == ["Test", "valid", "validation"]
    assert test is None


def test_a_class_with_the_name_of_a_part_is_an_error_with_a_cure(tmp_path):
    for name in ("Bus", "Train"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    message = r"Train has no class folders; .*, or rename it if it is a class itself"
    with pytest.raises(ValueError, match=message):
        list_images(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_what_is_transparent_is_white(tmp_path, mode):
    icon = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    icon.putpixel((1, 2), (0, 0, 0, 255))
    icon.putpixel((2, 2), (0, 0, 0, 51))
    options = {}
    if mode == "P":
        icon = icon.quantize(4)
    elif mode == "L":
        # A grey value that stands for transparent.
        icon = Image.fromarray(np.where(np.array(icon)[..., 3] == 255, 0, 7).astype(np.uint8))
        options = {"transparency": 7}
    else:
        icon = icon.convert(mode)
    icon.save(tmp_path / "icon.png", **options)
    with Image.open(tmp_path / "icon.png") as image:
        assert image.mode == mode
    pixels = one(tmp_path / "icon.png")
    assert pixels.shape == (4, 4, 1 if mode == "L" else 3)
    assert (pixels[2, 1] == 0).all()
    assert (pixels[2, 2] == (255 if mode == "L" else 204)).all()
    pixels[2, 1:3] = 255
    assert (pixels == 255).all()


def test_an_alpha_channel_without_transparency_changes_nothing(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "0.png")
    np.testing.assert_array_equal(one(tmp_path / "0.png"), picture)


def with_orientation(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_images_stand_upright(tmp_path, orientation, suffix):
    # Blocks of JPEG, so that it keeps the greys.
    grey = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((8, 8))).astype(np.uint8)
    path = tmp_path / f"0{suffix}"
    Image.fromarray(grey).convert("RGB").save(path, exif=with_orientation(orientation))
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    assert upright.shape == ((24, 16, 3) if 5 <= orientation <= 8 else (16, 24, 3))
    np.testing.assert_array_equal(one(path), upright)


def test_upright_images_of_one_size_need_no_other(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "0.jpg", exif=with_orientation(6))
    Image.new("RGB", (6, 8)).save(tmp_path / "1.jpg", exif=with_orientation(1))
    paths = np.array([str(tmp_path / "0.jpg"), str(tmp_path / "1.jpg")])
    assert read_images(paths).shape == (2, 3, 8, 6)


def test_damaged_exif_data_leave_the_image_as_it_lies(tmp_path):
    exif = with_orientation(6).tobytes().replace(b"MM\x00*", b"??\x00*")
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png", exif=exif)
    assert one(tmp_path / "0.png").shape == (6, 8, 3)


def test_the_header_is_read_without_the_pixels(tmp_path, monkeypatch):
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    loaded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: loaded.append(image))
    assert images._read_header(str(tmp_path / "0.png")) == ("RGB", (8, 6))
    assert loaded == []


def test_a_cache_of_another_decoding_is_not_taken(tmp_path):
    Image.new("RGBA", (8, 6)).save(tmp_path / "0.png")
    paths = np.array([str(tmp_path / "0.png")])
    old = tmp_path / "cache" / f"images-{digest_of(paths, None)}.npy"
    old.parent.mkdir()
    np.save(old, np.zeros((1, 3, 6, 8), dtype=np.uint8))
    assert (cached_images(paths, None, tmp_path / "cache") == 255).all()


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPE", ".gif"])
def test_usual_suffixes_are_known(tmp_path, suffix):
    write_classes(tmp_path, suffix=suffix)
    paths, labels = list_images(tmp_path)[0]
    assert labels.tolist() == ["a", "a", "b", "b"]
    assert read_images(paths).shape == (4, 3, 6, 8)


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "0.gif", save_all=True, append_images=frames[1:])
    assert (one(tmp_path / "0.gif") == [255, 0, 0]).all()


def test_images_that_are_left_out_are_told_once(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    seen = ["train/a/2.HEIC", "train/a/3.heic", "test/b/4.svg"]
    for name in [*seen, "test/b/notes.txt", "test/5.svg", "train/b/.6.heic"]:
        (tmp_path / name).write_bytes(b"")
    message = r"3 image files of .* are left out, .* not read: 2 \.heic, 1 \.svg; convert them to"
    with pytest.warns(UserWarning, match=message) as caught:
        load_image_folder(tmp_path)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image_folder(tmp_path)


def test_other_files_are_left_out_without_a_word(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("is no image")
    (tmp_path / "a" / ".2.heic").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list_images(tmp_path)[0][0]) == 4
