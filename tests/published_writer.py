"""Writes tiny data sets in the published formats that torchvision's readers read: made for tests alone."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

PUBLISHED = ("mnist", "fashion-mnist", "emnist", "cifar10", "cifar100", "svhn")
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]

# The published formats, written by hand: images [n, C, H, W] as they should come out, labels as they should come out


def draw(channels: int, size: int, n_classes: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    return images, np.concatenate([[0, n_classes - 1], rng.integers(0, n_classes, n - 2)]).astype(np.int64)


def arrays(name: str) -> Arrays:
    channels, size = (1, 28) if "mnist" in name else (3, 32)
    n_classes = {"emnist": 47, "cifar100": 100}.get(name, 10)
    return {"train": draw(channels, size, n_classes, 15, 1), "test": draw(channels, size, n_classes, 6, 2)}


def idx(array: np.ndarray) -> bytes:
    """The idx format: two zeros, the type (8 is unsigned byte), the number of dimensions, big-endian sizes, data."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, prefixes: dict[str, str], data: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in data.items():
        (folder / f"{prefixes[split]}-images-idx3-ubyte").write_bytes(idx(images[:, 0]))
        (folder / f"{prefixes[split]}-labels-idx1-ubyte").write_bytes(idx(labels))


def write_emnist(folder: Path, data: Arrays) -> None:
    turned = {split: (images.swapaxes(2, 3), labels) for split, (images, labels) in data.items()}
    write_mnist(folder, {split: f"emnist-balanced-{split}" for split in data}, turned)


def write_cifar(folder: Path, name: str, data: Arrays) -> None:
    """Pickled dictionaries of rows of 3072 bytes (red, green, blue planes), ten classes in five training batches."""
    folder.mkdir(parents=True, exist_ok=True)
    key = "labels" if name == "cifar10" else "fine_labels"
    for split, (images, labels) in data.items():
        rows = images.reshape(len(images), 3072)
        parts = [(split, slice(None))]
        if name == "cifar10" and split == "train":
            parts = [(f"data_batch_{k + 1}", slice(3 * k, 3 * k + 3)) for k in range(5)]
        elif name == "cifar10":
            parts = [("test_batch", slice(None))]
        for file, part in parts:
            batch = {"data": rows[part], key: labels[part].tolist()}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    names = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    (folder / names[0]).write_bytes(pickle.dumps({names[1]: ["a class"] * 10}, protocol=2))


def write_svhn(folder: Path, data: Arrays) -> None:
    """MATLAB files: X of [height, width, channel, n], y of [n, 1], where the digit 0 is labelled 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in data.items():
        stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": stored})


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def expect_these_files(monkeypatch: pytest.MonkeyPatch, name: str, root: Path) -> None:
    """Tell torchvision's reader the checksums of the tiny files in place of the published ones."""
    reader: Any
    if name == "svhn":
        reader = datasets.SVHN
        listed = {split: [u, f, md5(root / f)] for split, (u, f, _) in reader.split_list.items() if split != "extra"}
        monkeypatch.setattr(reader, "split_list", listed)
    elif name.startswith("cifar"):
        reader = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        folder = root / reader.base_folder
        for attribute in ("train_list", "test_list"):
            listed_files = [[file, md5(folder / file)] for file, _ in getattr(reader, attribute)]
            monkeypatch.setattr(reader, attribute, listed_files)
        monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5(folder / reader.meta["filename"])})


def publish(monkeypatch: pytest.MonkeyPatch, name: str, root: Path) -> Arrays:
    """Write a tiny version of a data set under ``root`` and return what should be read from it."""
    data = arrays(name)
    match name:
        case "mnist" | "fashion-mnist":
            folder = root / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name] / "raw"
            write_mnist(folder, {"train": "train", "test": "t10k"}, data)
        case "emnist":
            write_emnist(root / "EMNIST" / "raw", data)
        case "svhn":
            write_svhn(root, data)
        case _:
            write_cifar(root / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name], name, data)
    expect_these_files(monkeypatch, name, root)
    return data
