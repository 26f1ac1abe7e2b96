"""The files that published data sets are made of, and where these are looked for. Light to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from plasticity_cl.errors import UserError, unknown_name

DATA_VARIABLE = "PLASTICITY_CL_DATA"
"""Environment variable that names the data folder where no ``data_root`` is given."""


def _idx(prefix: str) -> tuple[str, ...]:
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


FILES: Mapping[str, tuple[str, ...]] = {
    "mnist": (*_idx("MNIST/raw/train"), *_idx("MNIST/raw/t10k")),
    "fashion-mnist": (*_idx("FashionMNIST/raw/train"), *_idx("FashionMNIST/raw/t10k")),
    "emnist": (*_idx("EMNIST/raw/emnist-balanced-train"), *_idx("EMNIST/raw/emnist-balanced-test")),
    "cifar10": tuple(
        f"cifar-10-batches-py/{file}"
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    "cifar100": tuple(f"cifar-100-python/{file}" for file in ("train", "test", "meta")),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
}
"""The files of each published data set below the data folder, laid out as torchvision does it."""


def data_folder(data_root: str | Path | None = None) -> Path:
    """Where data sets and caches are: ``data_root``, or what ``PLASTICITY_CL_DATA`` names, or else a default."""
    return Path(data_root or os.environ.get(DATA_VARIABLE) or "~/.cache/plasticity-cl").expanduser()


def check_files(name: str, data_root: str | Path | None, download: bool) -> None:
    """Check that a published data set is there, without reading it, where it may not be fetched.

    Raises:
        UserError: If the name is unknown, or one of its files is not below the data folder.
    """
    if name not in FILES:
        raise unknown_name("source", name, FILES)
    root = data_folder(data_root)
    missing = [file for file in FILES[name] if not (root / file).is_file()]
    if missing and not download:
        raise UserError(
            f"data set {name!r} is not in {root}: no {missing[0]} there; "
            "run again with --download (download=True), or give the data_root that holds it"
        )
