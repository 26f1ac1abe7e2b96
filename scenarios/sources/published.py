"""Published sets of images, read through torchvision, each stored once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plasticity_cl.errors import UserError, in_one_line
from plasticity_cl.scenarios.files import check_files, data_folder
from plasticity_cl.scenarios.sources.source import Source


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


def published(name: str, *, data_root: Path | str | None = None, download: bool = False) -> Source:
    """Read a published set of images, in the order and split in which it is published.

    Args:
        name: ``"mnist"``, ``"fashion-mnist"``, ``"emnist"`` (its balanced split), ``"cifar10"``, ``"cifar100"`` or
            ``"svhn"``.
        data_root: Folder laid out as torchvision does it, for instance holding ``MNIST/raw`` or
            ``cifar-10-batches-py``. By default what ``PLASTICITY_CL_DATA`` names, or else ``~/.cache/plasticity-cl``.
        download: Fetch what is missing into ``data_root``.

    Raises:
        UserError: For an unknown name, and for files that are missing, broken or could not be fetched.
    """
    root = data_folder(data_root)
    check_files(name, root, download)
    known = _PUBLISHED[name]
    files = {split: _files(known.reader, split) for split in ("train", "test")}
    splits = {}
    for split in ("train", "test"):
        try:
            splits[split] = _read(known.reader, root, split, download)
        except Exception as error:  # readers raise whatever their format's parser makes of foreign bytes
            raise _unreadable(name, root, files[split], download, error) from error
    try:
        return Source(name, *splits["train"], *splits["test"], known.n_classes, known.mean, known.std)
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
    reason = in_one_line(error) or "not in the published format"
    if download and (absent or changed):
        return UserError(f"data set {name!r} could not be fetched into {root}: {reason}")
    remedy = "delete what is broken and run again with --download (download=True)"
    if changed:
        return UserError(f"data set {name!r} in {root} is broken: {', '.join(changed)} not as published; {remedy}")
    return UserError(f"data set {name!r} in {root} is broken: {', '.join(files)}: {reason}; {remedy}")
