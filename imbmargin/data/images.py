"""Folders of images: found, checked and decoded."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PART_NAMES",
    "cached_images",
    "cached_rows",
    "class_folders",
    "digest_of",
    "find_parts",
    "find_test_folder",
    "list_images",
    "read_images",
]

PART_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
"""Part of a data set -> names that its folder may have, in small letters or capitals."""

_SUFFIXES = (
    *(".bmp", ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm"),
)
# Images that are left out with a warning; other files, such as .txt, are left out without one.
_UNREAD = {
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".svgz", ".eps"),
    *(".apng", ".pbm", ".pnm", ".tga", ".psd", ".ico", ".exr", ".dcm"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
}
# Raised when decoding changes, so that caches with the pixels of before are not taken.
_DECODING = 2
_GREY_MODES = {"1", "L"}
# PIL cuts these to 8 bit without scaling, which leaves white pictures.
_DEEP_MODES = ("I", "F")
# EXIF orientation -> what turns an image upright; from 5 on height and width change places.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_THREADS = 8
# Images in memory while others than neighbours are copied.
_COPIED = 256

Listing = tuple[NDArray[Any], NDArray[Any]]


def find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders of the parts by their key in `PART_NAMES`; none without a training part.

    Raises
    ------
    ValueError
        If there are two folders for a part.
    """
    folders = class_folders(folder)
    same = {
        part: [path for path in folders if path.name.lower() in names]
        for part, names in PART_NAMES.items()
    }
    if not same["train"]:
        return {}
    for part, paths in same.items():
        if len(paths) > 1:
            raise ValueError(
                f"{folder} has the folders {[path.name for path in paths]}, and each may be its "
                f"{part} part; leave one of them there"
            )
    return {part: paths[0] for part, paths in same.items() if paths}


def find_test_folder(folder: Path) -> Path | None:
    """Return the test part beside the training part, if there is one; else the validation part."""
    parts = find_parts(folder)
    return parts.get("test", parts.get("val"))


def list_images(folder: Path) -> tuple[Listing, Listing | None]:
    """Return the paths and labels of the images of a folder, sorted by class and name.

    Parameters
    ----------
    folder : Path
        Class folders, or ``train`` and perhaps ``test`` or ``val`` with class folders in each;
        `PART_NAMES` has other names of these three.

    Returns
    -------
    train : tuple of ndarray
        Paths and labels.
    test : tuple of ndarray, or None
        Those of the test folder, if there is one.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If there are no class folders, one is empty, the test folder has an unknown class, or there
        are two folders for a part.

    Warns
    -----
    UserWarning
        If there are images of a kind that is not read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    train_folder, test_folder = find_parts(folder).get("train", folder), find_test_folder(folder)
    unread: Counter[str] = Counter()
    train = _list_classes(train_folder, unread)
    test = None if test_folder is None else _list_classes(test_folder, unread)
    if unread:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
        _warn_of_unread(folder, unread.total(), kinds)
    if test is None:
        return train, None
    unknown = np.setdiff1d(test[1], train[1]).tolist()
    if unknown:
        raise ValueError(
            f"{test_folder} has classes {unknown} that {train_folder} lacks; the folders must "
            "have the same names"
        )
    return train, test


@cache
def _warn_of_unread(folder: Path, count: int, kinds: str) -> None:
    """Warn of images that are left out: once, though a benchmark lists a folder many times."""
    warnings.warn(
        f"{count} image files of {folder} are left out, of kinds that are not read: {kinds}; "
        f"convert them to one of {', '.join(_SUFFIXES)}",
        UserWarning,
        # The caller of load_image_folder.
        stacklevel=4,
    )


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; hidden ones are no classes."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_classes(folder: Path, unread: Counter[str]) -> Listing:
    """Return paths and labels of a part, and count the suffixes of images that are not read."""
    classes = class_folders(folder)
    if not classes:
        is_part = any(folder.name.lower() in names for names in PART_NAMES.values())
        raise ValueError(
            f"{folder} has no class folders; put the images of each class into a folder of its name"
            + is_part * ", or rename it if it is a class itself"
        )
    paths: list[str] = []
    labels: list[str] = []
    for class_folder in classes:
        by_suffix = [(os.path.splitext(path)[1].lower(), path) for path in _files(class_folder)]
        unread.update(suffix for suffix, _ in by_suffix if suffix in _UNREAD)
        found = [path for suffix, path in by_suffix if suffix in _SUFFIXES]
        if not found:
            raise ValueError(
                f"class folder {class_folder} has no images ({', '.join(_SUFFIXES)}); "
                "remove it or fill it"
            )
        paths += found
        labels += [class_folder.name] * len(found)
    return np.array(paths), np.array(labels)


def _files(class_folder: Path) -> list[str]:
    """Return the files of a class, also those in folders below, without what is hidden."""
    found: list[str] = []
    for folder, below, files in os.walk(class_folder):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda path: path.split(os.sep))


def cached_images(
    paths: NDArray[Any], image_size: int | None, cache_dir: Path
) -> NDArray[np.uint8]:
    """Return all images as a memory map of a file, in which they are decoded the first time.

    The file belongs to these images, and to the way in which they are decoded: another one is made
    when a file has another name, size or time. It may be removed at any time.

    Parameters
    ----------
    paths, image_size
        As in `read_images`.
    cache_dir : Path
        Folder of the file; made if it is not there.

    Returns
    -------
    images : memory map of uint8, shape (n, C, H, W)

    Raises
    ------
    ValueError
        If the file is damaged, or as in `read_images`.
    OSError
        If the folder cannot be written, or has not the room.
    """
    file = cache_dir / f"images-{digest_of(paths, image_size, _DECODING)}.npy"
    return _cached(file, lambda half: read_images(paths, image_size, half))


def cached_rows(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return some of the images of `cached_images`, as a memory map too.

    Those that follow one another are a part of the map; others are copied to a file beside it,
    which other rows, such as those of another split, do not share.
    """
    start, stop = int(rows[0]), int(rows[0]) + len(rows)
    if np.array_equal(rows, np.arange(start, stop)):
        return images[start:stop]
    whole = Path(images.filename)  # type: ignore[attr-defined]
    digest = hashlib.sha256(whole.name.encode() + rows.astype(np.int64).tobytes()).hexdigest()[:16]

    def copy(half: Path) -> None:
        part = _make_map(half, (len(rows), *images.shape[1:]))
        for i in range(0, len(rows), _COPIED):
            part[i : i + _COPIED] = images[rows[i : i + _COPIED]]

    return _cached(whole.with_name(f"rows-{digest}.npy"), copy)


def _cached(file: Path, write: Callable[[Path], Any]) -> NDArray[np.uint8]:
    """Return the memory map of a file, which is written if it is not there."""
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Written beside and renamed, so that nobody finds half of it.
            with tempfile.TemporaryDirectory(dir=file.parent) as beside:
                half = Path(beside, file.name)
                write(half)
                os.replace(half, file)
        except OSError as error:
            raise OSError(
                f"cache_dir {file.parent} cannot hold the images: {error}; make room there, or "
                "pass another folder"
            ) from error
    try:
        return np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{file} of the cache is damaged: {error}; remove it, and it is made anew"
        ) from error


def _make_map(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a new memory map that has its room on the disk.

    Without, a disk that gets full while the map is written ends the process.
    """
    images = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
            except OSError as error:
                # Some file systems cannot; those then fare as systems without this call.
                if error.errno != errno.EOPNOTSUPP:
                    raise
    return images


def digest_of(paths: NDArray[Any], *more: Any) -> str:
    """Return 16 letters that change with a path, a size or a time of the files, or with the rest.

    Files are not read: of 50,000 images it is known in a second. Their order counts.
    """
    states = []
    for path in paths.tolist():
        state = os.stat(path)
        states.append((os.path.abspath(path), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(repr((more, states)).encode()).hexdigest()[:16]


def read_images(
    paths: NDArray[Any], image_size: int | None = None, file: Path | None = None
) -> NDArray[np.uint8]:
    """Decode images: upright, as their EXIF data tell, and on white where they are transparent.

    Of several frames the first is taken.

    Parameters
    ----------
    paths : array of str, shape (n,)
        Image files.
    image_size : int, default=None
        Height and width in pixels: the middle is cut out and resized. None keeps the size.
    file : Path, default=None
        Where they are written as a NumPy array, in place of memory.

    Returns
    -------
    images : ndarray of uint8, shape (n, C, H, W)
        C is 1 if all are grey, else 3.

    Raises
    ------
    ValueError
        If an image cannot be read, has more than 8 bits, or sizes differ without ``image_size``.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_read_header, paths.tolist()))
        sizes = np.array([size for _, size in headers])
        if image_size is None and (sizes != sizes[0]).any():
            other = int((sizes != sizes[0]).any(axis=1).argmax())
            raise ValueError(
                f"images differ in size: {paths[0]} has {headers[0][1]} pixels, {paths[other]} "
                f"{headers[other][1]}; pass image_size, for instance image_size=32"
            )
        grey = all(mode in _GREY_MODES for mode, _ in headers)
        width, height = headers[0][1] if image_size is None else (image_size, image_size)
        shape = (len(paths), 1 if grey else 3, height, width)
        images = np.empty(shape, dtype=np.uint8) if file is None else _make_map(file, shape)

        def decode(i: int) -> None:
            images[i] = _decode(str(paths[i]), "L" if grey else "RGB", (width, height))

        # The results are read so that an error of a thread is raised here.
        list(pool.map(decode, range(len(paths))))
    return images


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"image {path} cannot be read: {error}; remove the file or repair it"
        ) from error


def _read_header(path: str) -> tuple[str, tuple[int, int]]:
    """Return the mode of an image, and the size that it will have when it is upright."""
    with _opened(path) as image:
        mode, (width, height), orientation = image.mode, image.size, _orientation(image)
    if mode.startswith(_DEEP_MODES):
        raise ValueError(f"image {path} has more than 8 bits (mode {mode}); convert it to 8 bits")
    return mode, (height, width) if orientation >= 5 else (width, height)


def _orientation(image: Any) -> int:
    """Return how the pixels lie, as EXIF data in front of them tell; 1 is upright."""
    from PIL import ExifTags, Image

    # PIL turns these itself, and gives the size of the upright image.
    if image.format == "TIFF":
        return 1
    try:
        # Not image.getexif(), which decodes a PNG file to look behind its pixels.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:
        # The pixels may be whole where these data are damaged.
        return 1
    return found if found in _TURNS else 1


def _decode(path: str, mode: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    with _opened(path) as image:
        picture: Any = image
        orientation = _orientation(image)
        picture.load()
        if picture.has_transparency_data:
            # Else what lies below would appear: black, in most files.
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert(mode)
    if orientation in _TURNS:
        # Not ImageOps.exif_transpose, which fails at EXIF data that are damaged elsewhere.
        picture = picture.transpose(Image.Transpose[_TURNS[orientation]])
    if picture.size != size:
        picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
