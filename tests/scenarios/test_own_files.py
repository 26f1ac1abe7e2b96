"""Images and arrays of the user's own: streams are made of what is in the files, and what is wrong is said."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plasticity_cl.errors import UserError
from plasticity_cl.images import to_float
from plasticity_cl.scenarios import LabelReset, load_source
from plasticity_cl.scenarios.sources.source import channel_constants


def pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def save_images(folder: Path, classes: dict[str, int], size: int = 8) -> dict[str, np.ndarray]:
    """One PNG an image, and what they show."""
    shown = {}
    for i, (name, n) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        shown[name] = pixels(n, size, size, 3, seed=i)
        for k, image in enumerate(shown[name]):
            Image.fromarray(image).save(folder / name / f"{k:03d}.png")
    return shown


# Folders of images


def test_folders_of_both_splits_are_read_to_the_pixel(tmp_path: Path) -> None:
    shown = {split: save_images(tmp_path / split, {"cat": 3, "ant": 2}) for split in ("train", "test")}
    source = load_source(f"image-folder:folder={tmp_path},size=8")
    for split in ("train", "test"):
        # Classes in alphabetical order, images in that of their names.
        expected = np.concatenate([shown[split]["ant"], shown[split]["cat"]]).transpose(0, 3, 1, 2)
        assert np.array_equal(getattr(source, f"{split}_inputs").numpy(), expected)
        assert getattr(source, f"{split}_labels").tolist() == [0, 0, 1, 1, 1]
    assert source.n_classes == 2
    assert len(LabelReset(source, 2).train_stream[0].dataset) == 5


def test_one_folder_is_split_class_by_class_always_alike(tmp_path: Path) -> None:
    shown = save_images(tmp_path, {"a": 10, "b": 5})
    one, two = (load_source(f"image-folder:folder={tmp_path},size=8,test=0.3") for _ in range(2))
    assert torch.equal(one.test_inputs, two.test_inputs)
    assert one.test_labels.bincount().tolist() == [3, 2]
    assert one.train_labels.bincount().tolist() == [7, 3]
    both = torch.cat([one.train_inputs, one.test_inputs]).permute(0, 2, 3, 1).numpy()
    wanted = np.concatenate([shown["a"], shown["b"]])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in wanted)


def test_other_sizes_and_modes_become_small_rgb(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k, mode in enumerate(("L", "RGBA", "P", "1")):
            Image.fromarray(pixels(1, 20, 30, seed=k)[0]).convert(mode).save(tmp_path / name / f"{k}.png")
    source = load_source(f"image-folder:folder={tmp_path},size=4")
    assert source.input_shape == (3, 4, 4)


def test_a_network_sees_images_standardised(tmp_path: Path) -> None:
    save_images(tmp_path, {"a": 20, "b": 20})
    source = load_source(f"image-folder:folder={tmp_path},size=8")
    seen = to_float(source.train_inputs, source.mean, source.std).double()
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.var((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_constants_of_channels_are_those_of_all_pixels() -> None:
    images = torch.from_numpy(pixels(7, 3, 5, 4))
    images[:, 1] = 9  # the same everywhere
    mean, std = channel_constants(images)
    values = images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), values.mean(1))
    wanted = values.std(1, correction=0)
    assert torch.tensor(std, dtype=torch.float64)[[0, 2]].tolist() == pytest.approx(wanted[[0, 2]].tolist())
    assert std[1] == 1


def huge_png(path: Path) -> None:
    """A picture of 60,000 x 60,000 pixels, of which only the head is there."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "a" / "000.png").write_bytes(b"no picture"), "image .*000.png cannot be read"),
        (lambda folder: huge_png(folder / "a" / "000.png"), "image .*000.png cannot be read"),
        (lambda folder: [path.unlink() for path in (folder / "b").iterdir()], "holds images of 1 classes"),
        (
            lambda folder: [path.unlink() for path in [*(folder / "b").iterdir()][1:]],
            "1 test images and no train image",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, spoil, message: str) -> None:
    save_images(tmp_path, {"a": 4, "b": 4})
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_source(f"image-folder={tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("option", "message"), [("size=0", "size is 0"), ("test=1.5", "test is 1.5")])
def test_options_out_of_range_are_named(tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_source(f"image-folder:folder={tmp_path},{option}")


# Arrays


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    made = {"x_train": pixels(6, 3, 4, 4), "x_test": pixels(4, 3, 4, 4, seed=1)}
    made |= {"y_train": np.array([0, 1, 2, 0, 1, 2]), "y_test": np.array([2, 1, 0, 0])}
    return {name: value for name, value in (made | changes).items() if value is not None}


def test_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **arrays())
    source = load_source(f"npz={tmp_path / 'mine.npz'}")
    assert np.array_equal(source.train_inputs.numpy(), arrays()["x_train"])
    assert source.test_labels.tolist() == [2, 1, 0, 0]
    assert (source.name, source.n_classes) == ("mine", 3)
    seen = to_float(source.train_inputs, source.mean, source.std)
    assert float(seen.mean()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((4, 5), (1, 4, 5)),
        ((4, 5, 3), (3, 4, 5)),
        ((4, 5, 1), (1, 4, 5)),
        ((3, 4, 5), (3, 4, 5)),
        ((1, 4, 5), (1, 4, 5)),
    ],
)
def test_images_in_any_layout(tmp_path: Path, shape, wanted) -> None:
    train, test = pixels(6, *shape), pixels(4, *shape, seed=1)
    named = {"train_inputs": train, "test_inputs": test}
    labels = {"train_labels": arrays()["y_train"][:, None], "test_labels": arrays()["y_test"]}
    np.savez_compressed(tmp_path / "mine.npz", **named, **labels)
    source = load_source(f"npz={tmp_path / 'mine.npz'}")
    assert source.input_shape == wanted
    moved = np.moveaxis(train, 3, 1) if len(shape) == 3 and shape[2] in (1, 3) else train
    assert np.array_equal(source.train_inputs.numpy().reshape(6, *wanted), moved.reshape(6, *wanted))


def test_floats_are_not_standardised(tmp_path: Path) -> None:
    floats = {name: np.random.default_rng(0).normal(size=(n, 7)) for name, n in (("x_train", 6), ("x_test", 4))}
    np.savez(tmp_path / "mine.npz", **arrays(**floats))
    source = load_source(f"npz={tmp_path / 'mine.npz'}")
    assert source.input_shape == (1, 1, 7)
    assert np.array_equal(source.train_inputs.flatten(1).numpy(), floats["x_train"].astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "has no array test_labels or y_test: it has x_train, x_test, y_train"),
        ({"x_train": pixels(6, 3, 4, 4).astype(np.int64)}, "train_inputs .* are int64: save uint8 images or floats"),
        ({"y_train": np.zeros(6)}, "train_labels .* are float64: save whole numbers"),
        ({"y_train": np.arange(5)}, "need a label each"),
        ({"y_train": np.array([0, 1, 2, 0, 1, -1])}, "must be int64 in 0"),
        ({"x_test": pixels(4, 3, 5, 5)}, r"must be \[n, C, H, W\]"),
        ({"y_train": np.array([{}] * 6, dtype=object)}, "cannot be read as an .npz file: .*allow_pickle"),
    ],
)
def test_what_is_wrong_with_arrays_is_said(tmp_path: Path, changes, message: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays(**changes))
    with pytest.raises(UserError, match=message) as caught:
        load_source(f"npz={tmp_path / 'mine.npz'}")
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **arrays())
    whole = (tmp_path / "mine.npz").read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "mine.npz").write_bytes(content)
        with pytest.raises(UserError, match="mine.npz cannot be read as an .npz file"):
            load_source(f"npz={tmp_path / 'mine.npz'}")
