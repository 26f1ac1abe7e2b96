"""Where the images come from: bundled, generated, or published sets read through torchvision, each stored once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.images import to_float
from plasticity_cl.scenarios.files import SOURCES, check_files, data_folder
from plasticity_cl.seeding import generator


@dataclass(frozen=True, eq=False)
class Source:
    """Images and labels of one data set, in memory, to be shared by everything that reads them and changed by nothing.

    Args:
        name: A name of :data:`~plasticity_cl.scenarios.files.SOURCES`.
        train_inputs: ``[n, C, H, W]``: float32, already standardised, or uint8 as published, for :func:`to_float`.
        train_labels: int64 ``[n]``, in ``0 .. n_classes - 1``.
        test_inputs: As ``train_inputs``, of the published test split.
        test_labels: As ``train_labels``.
        n_classes: Number of classes.
        mean: Per channel, the training images' mean in units of ``[0, 1]``; empty where the inputs are float32.
        std: Per channel, their standard deviation; empty where the inputs are float32.

    Raises:
        UserError: Where these do not fit each other.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    n_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            inputs, labels = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels")
            if inputs.dim() != 4 or inputs.shape[1:] != self.train_inputs.shape[1:]:
                raise UserError(f"{split} images of {self.name!r} must be [n, C, H, W], got {list(inputs.shape)}")
            if labels.shape != inputs.shape[:1] or len(labels) == 0:
                raise UserError(
                    f"{split} images of {self.name!r} need a label each, got images {list(inputs.shape)} "
                    f"and labels {list(labels.shape)}"
                )
            if labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
                raise UserError(f"{split} labels of {self.name!r} must be int64 in 0 .. {self.n_classes - 1}")
            to_float(inputs[:1], self.mean, self.std)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.train_inputs.shape[1:]
        return channels, height, width


def load_source(name: str, *, data_root: Path | str | None = None, download: bool = False) -> Source:
    """Load a data set by name. Nothing is fetched from the network unless ``download`` is true.

    Args:
        name: ``"digits"`` (scikit-learn's, bundled) and ``"synthetic"`` (generated) need no files. ``"mnist"``,
            ``"fashion-mnist"``, ``"emnist"`` (its balanced split), ``"cifar10"``, ``"cifar100"`` and ``"svhn"`` are
            read from ``data_root``, in the order and split in which they are published.
        data_root: Folder laid out as torchvision does it, for instance holding ``MNIST/raw`` or
            ``cifar-10-batches-py``. By default what ``PLASTICITY_CL_DATA`` names, or else ``~/.cache/plasticity-cl``.
        download: Fetch what is missing into ``data_root``.

    Returns:
        The source.

    Raises:
        UserError: For an unknown name, and for files that are missing, broken or could not be fetched.
    """
    if name not in SOURCES:
        raise unknown_name("source", name, SOURCES)
    if name in _GENERATED:
        return _GENERATED[name]()
    return _load_published(name, data_folder(data_root), download)


# Small sets that need no files


def _digits() -> Source:
    """Read scikit-learn's 1797 handwritten digits, 1 x 8 x 8 with 17 levels of grey: 1437 to train, 360 to test.

    Both splits are in a fixed random order in which every run of images from the start holds as many of each class, to
    within one, while they last.
    """
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    bundled = load_digits()
    inputs = torch.from_numpy(bundled.images).unsqueeze(1)
    labels = torch.from_numpy(bundled.target).long()
    return _standardised("digits", inputs, labels, n_test=360)


def _synthetic() -> Source:
    """Draw ten Gaussian clusters as 1 x 8 x 8 images: 2000 to train, 500 to test.

    Centres are N(0, 1/4) and noise is N(0, 1) per pixel, so that the best possible test accuracy is about 0.95. Drawn
    in float64 and rounded to float32, which hides the last bits in which machines differ.
    """
    draws = generator(0, "synthetic")
    labels = torch.arange(2500) % 10
    centres = 0.5 * torch.randn(10, 1, 8, 8, generator=draws, dtype=torch.float64)
    inputs = centres[labels] + torch.randn(2500, 1, 8, 8, generator=draws, dtype=torch.float64)
    return _standardised("synthetic", inputs, labels, n_test=500)


def _standardised(name: str, inputs: Tensor, labels: Tensor, n_test: int) -> Source:
    """Split float64 images, test first, in a fixed balanced order, and standardise both by the training images."""
    draws = generator(0, name, "order")
    order = torch.randperm(len(labels), generator=draws)
    # The rank of each image among those of its class, in that order; each rank holds one image of each class.
    rank = torch.nn.functional.one_hot(labels[order]).cumsum(0).gather(1, labels[order, None]).squeeze(1)
    order = order[(rank + torch.rand(len(labels), generator=draws, dtype=torch.float64)).argsort()]
    inputs, labels = inputs[order], labels[order]
    train = inputs[n_test:]
    inputs = ((inputs - train.mean()) / train.std(correction=0)).float()
    return Source(
        name=name,
        train_inputs=inputs[n_test:],
        train_labels=labels[n_test:],
        test_inputs=inputs[:n_test],
        test_labels=labels[:n_test],
        n_classes=int(labels.max()) + 1,
        mean=(),
        std=(),
    )


_GENERATED: dict[str, Callable[[], Source]] = {"digits": _digits, "synthetic": _synthetic}


# Published sets, through torchvision


@dataclass(frozen=True)
class _Published:
    """A set that torchvision reads.

    Args:
        reader: Name of the class in ``torchvision.datasets``.
        n_classes: Number of classes.
        mean: Per channel, over the training images, in units of ``[0, 1]``.
        std: Per channel, over the training images.
    """

    reader: str
    n_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_PUBLISHED = {
    "mnist": _Published("MNIST", 10, (0.1307,), (0.3081,)),
    "fashion-mnist": _Published("FashionMNIST", 10, (0.2860,), (0.3530,)),
    "emnist": _Published("EMNIST", 47, (0.1751,), (0.3332,)),
    "cifar10": _Published("CIFAR10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _Published("CIFAR100", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": _Published("SVHN", 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def _load_published(name: str, root: Path, download: bool) -> Source:
    if not download:
        check_files(name, root)
    published = _PUBLISHED[name]
    files = {split: _files(published.reader, split) for split in ("train", "test")}
    splits = {}
    for split in ("train", "test"):
        try:
            splits[split] = _read(published.reader, root, split, download)
        except Exception as error:  # readers raise whatever their format's parser makes of foreign bytes
            raise _unreadable(name, root, files[split], download, error) from error
    try:
        return Source(name, *splits["train"], *splits["test"], published.n_classes, published.mean, published.std)
    except UserError as error:
        raise _unreadable(name, root, files["train"] | files["test"], download, error) from error


def _files(reader: str, split: str) -> dict[str, str | None]:
    """Name the files that ``reader`` needs for a split, relative to the data root, with their MD5 sums where known."""
    from torchvision import datasets  # torchvision takes seconds to import

    published = getattr(datasets, reader)
    match reader:
        case "SVHN":
            _, file, md5 = published.split_list[split]
            return {file: md5}
        case "CIFAR10" | "CIFAR100":
            meta = (published.meta["filename"], published.meta["md5"])
            listed = (*published.train_list, *published.test_list, meta)
            return {f"{published.base_folder}/{file}": md5 for file, md5 in listed}
        case "EMNIST":
            prefix = f"EMNIST/raw/emnist-balanced-{split}"
        case _:
            prefix = f"{reader}/raw/{'train' if split == 'train' else 't10k'}"
    return dict.fromkeys((f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"))


def _read(reader: str, root: Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
    """Read a split's images, uint8 ``[n, C, H, W]``, and labels, int64 ``[n]``."""
    from torchvision import datasets

    published = getattr(datasets, reader)
    match reader:
        case "SVHN":
            data = published(root, split=split, download=download)
            return torch.from_numpy(data.data).contiguous(), torch.from_numpy(data.labels)
        case "CIFAR10" | "CIFAR100":
            data = published(root, train=split == "train", download=download)
            # torchvision shows the stored [n, C, H, W] bytes as [n, H, W, C]: turning them back copies nothing.
            return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)
        case "EMNIST":
            data = published(root, split="balanced", train=split == "train", download=download)
            # Published with rows and columns exchanged, which torchvision leaves as it is.
            return data.data.transpose(1, 2).contiguous().unsqueeze(1), data.targets
        case _:
            data = published(root, train=split == "train", download=download)
            return data.data.unsqueeze(1), data.targets


def _unreadable(name: str, root: Path, files: dict[str, str | None], download: bool, error: Exception) -> UserError:
    """Say which of the files are to blame for an error of torchvision's, which mostly names none, and what to do."""
    from torchvision.datasets.utils import check_integrity

    absent = [file for file in files if not (root / file).is_file()]
    changed = [
        file for file, md5 in files.items() if md5 and file not in absent and not check_integrity(root / file, md5)
    ]
    reason = " ".join(str(error).split()) or "not in the published format"
    if download and (absent or changed):
        return UserError(f"data set {name!r} could not be fetched into {root}: {reason}")
    remedy = "delete what is broken and run again with --download (download=True)"
    if changed:
        return UserError(f"data set {name!r} in {root} is broken: {', '.join(changed)} not as published; {remedy}")
    return UserError(f"data set {name!r} in {root} is broken: {', '.join(files)}: {reason}; {remedy}")
