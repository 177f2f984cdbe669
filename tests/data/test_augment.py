import pytest
import torch

from imbmargin.data.augment import RandomCrop, RandomFlip, make_augment


def naive_crop(images, padding, offsets):
    n, _, height, width = images.shape
    out = torch.zeros_like(images)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                row, column = y + offsets[0, i] - padding, x + offsets[1, i] - padding
                if 0 <= row < height and 0 <= column < width:
                    out[i, :, y, x] = images[i, :, row, column]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(20, 3, 6, 6), (9, 1, 5, 7)])
def test_crop_equals_a_loop_over_the_images(shape, dtype):
    images = torch.randint(1, 255, shape).to(dtype)
    torch.manual_seed(3)
    cropped = RandomCrop(2)(images)
    torch.manual_seed(3)
    offsets = torch.randint(5, (2, shape[0], 1, 1)).flatten(1)
    torch.testing.assert_close(cropped, naive_crop(images, 2, offsets))
    assert cropped.dtype == dtype


def test_every_offset_comes_up():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1
    torch.manual_seed(0)
    cropped = RandomCrop(1)(image.expand(900, 1, 5, 5))
    where = cropped.sum(0)[0]
    assert (where[1:4, 1:4] > 60).all()
    assert where.sum() == 900


def test_flip_mirrors_half_of_the_images():
    torch.manual_seed(0)
    images = torch.randn(400, 2, 3, 4)
    flipped = RandomFlip()(images)
    same = (flipped == images).flatten(1).all(dim=1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250


@pytest.mark.parametrize("name", ["crop", "flip", "crop_flip"])
def test_memory_format_and_global_shape_are_kept(name):
    images = torch.zeros(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    out = make_augment(name, (3, 8, 8))(images)
    assert out.shape == images.shape
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_auto_depends_on_the_data():
    assert make_augment("auto", None) is None
    assert make_augment(None, (3, 8, 8)) is None
    assert isinstance(make_augment("auto", (1, 28, 28)), RandomCrop)
    steps = make_augment("auto", (3, 32, 32)).steps
    assert [type(step) for step in steps] == [RandomCrop, RandomFlip]
    assert steps[0].padding == 4
    own = make_augment(torch.clone, (3, 32, 32))
    assert own is torch.clone


def test_errors():
    with pytest.raises(ValueError, match=r"augment must be one of \['auto', 'crop'.*got 'mix'"):
        make_augment("mix", (3, 8, 8))
    with pytest.raises(ValueError, match=r"augment='crop' is for images.*pass image_shape"):
        make_augment("crop", None)
    with pytest.raises(ValueError, match="padding must be at least 1 pixel, got 0"):
        RandomCrop(0)
