import pytest
import torch
from torchvision.transforms import v2

from imbmargin import MaxMarginClassifier
from imbmargin.data.augment import (
    AUGMENTATIONS,
    Cutout,
    Grouped,
    RandomCrop,
    RandomFlip,
    make_augment,
)


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["auto", "strong", *AUGMENTATIONS])
def test_type_memory_format_and_shape_are_kept_and_pixels_change(name, channels):
    torch.manual_seed(0)
    images = torch.randint(256, (64, channels, 16, 16), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    out = make_augment(name, (channels, 16, 16))(images)
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert channels == 1 or out.is_contiguous(memory_format=torch.channels_last)
    assert (out != images).flatten(1).any(1).sum() > 16
    assert torch.equal(images, before)


def test_cutout_equals_a_loop_over_the_images():
    torch.manual_seed(0)
    images = torch.randint(1, 256, (200, 3, 9, 12), dtype=torch.uint8)
    torch.manual_seed(1)
    holes = Cutout(4)(images) == 0
    torch.manual_seed(1)
    y, x = torch.randint(9, (200, 1)), torch.randint(12, (200, 1))
    expected = torch.zeros(200, 3, 9, 12, dtype=torch.bool)
    for i in range(200):
        rows, columns = (slice(max(c - 2, 0), c + 2) for c in (int(y[i]), int(x[i])))
        expected[i, :, rows, columns] = True
    assert torch.equal(holes, expected)


def test_groups_get_one_draw_each_and_keep_their_order():
    torch.manual_seed(0)
    images = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 2, 2)
    out = Grouped(lambda part: part + 100 * torch.randint(50, ()), groups=5)(images)
    shift, rest = out[:, 0, 0, 0] // 100, out[:, 0, 0, 0] % 100
    assert torch.equal(rest, torch.arange(20.0))
    assert sorted(shift.unique(return_counts=True)[1].tolist()) == [4] * 5
    assert not torch.equal(shift, Grouped(lambda part: part + 100, groups=5)(images)[:, 0, 0, 0])
    assert Grouped(torch.clone)(images[:3]).shape == (3, 1, 2, 2)


def test_an_image_alone_in_its_group_gets_what_torchvision_draws():
    torch.manual_seed(0)
    images = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8)
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    torch.manual_seed(1)
    out = Grouped(policy, groups=12)(images)
    torch.manual_seed(1)
    for i in torch.randperm(12):
        assert torch.equal(out[i], policy(images[i]))


def test_lists_are_applied_in_turn():
    torch.manual_seed(0)
    images = torch.ones(8, 3, 16, 16)
    steps = make_augment(["cutout", lambda images: images + 1, None], (3, 16, 16))
    assert set(steps(images).unique().tolist()) == {1.0, 2.0}
    assert [type(step) for step in make_augment("strong", (3, 32, 32)).steps[::3]] == [
        RandomCrop,
        Cutout,
    ]


def test_strong_augmentation_in_fit_is_reproducible(images):
    X, y = images
    settings = {"module": "resnet20", "augment": "strong", "max_epochs": 1, "random_state": 0}
    first, second = (MaxMarginClassifier(**settings).fit(X, y) for _ in range(2))
    assert first.history_[:, "train_loss"] == second.history_[:, "train_loss"]
    with pytest.raises(ValueError, match="augment='autoaugment' needs images of type uint8"):
        MaxMarginClassifier(**settings).fit(X.astype("float32"), y)


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
    for wrong in ("mix", {"crop": 1}, 3):
        with pytest.raises(ValueError, match=r"augment must be one of \['auto', 'strong', 'crop'"):
            make_augment(wrong, (3, 8, 8))
    with pytest.raises(ValueError, match="'randaugment' needs images with 1 or 3 channels, got 4"):
        make_augment("randaugment", (4, 8, 8))
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        Cutout(0)
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        Grouped(torch.clone, groups=0)
    with pytest.raises(ValueError, match=r"augment='crop' is for images.*pass image_shape"):
        make_augment("crop", None)
    with pytest.raises(ValueError, match="padding must be at least 1 pixel, got 0"):
        RandomCrop(0)
