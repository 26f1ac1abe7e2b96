"""A folder of images, one folder a class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from plasticity_cl.errors import UserError, in_one_line
from plasticity_cl.parts.values import Count, Folder, Share, limit
from plasticity_cl.scenarios.sources.source import Source, channel_constants
from plasticity_cl.seeding import generator

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_folder(folder: Folder, *, size: Count = 32, test: Share = 0.2) -> Source:
    """Images of your own: FOLDER/CLASS/*.png and the like, or FOLDER/train/CLASS/* and FOLDER/test/CLASS/*.

    Classes are the names of folders in alphabetical order. Images are read in the order of their names, converted to
    RGB, scaled to a square and kept in memory as uint8; training sees them standardised by the training images' mean
    and standard deviation per channel.

    Args:
        folder: The folder.
        size: Height and width in pixels to which every image is scaled.
        test: Share of each class that is the test set, where there are no folders ``train`` and ``test``: drawn by a
            seed of its own, the same each time.

    Raises:
        UserError: If there is no image, a class is missing on one side, or a file cannot be read.
    """
    root = Path(folder).expanduser()
    limit(Count, "size", size)
    limit(Share, "test", test)
    if (root / "train").is_dir() and (root / "test").is_dir():
        files = {split: _files(root / split) for split in ("train", "test")}
    else:
        files = {"train": {}, "test": {}}
        for name, paths in _files(root).items():
            order = torch.randperm(len(paths), generator=generator(0, "image-folder", name)).tolist()
            n_test = max(1, round(test * len(paths)))
            files["test"][name] = sorted(paths[i] for i in order[:n_test])
            files["train"][name] = sorted(paths[i] for i in order[n_test:])
    for split, other in (("train", "test"), ("test", "train")):
        for name, paths in files[split].items():
            if not files[other].get(name):
                raise UserError(f"class {name} of {root} has {len(paths)} {split} images and no {other} image")
    classes = sorted(files["train"])
    splits = {split: _read(files[split], classes, size) for split in ("train", "test")}
    mean, std = channel_constants(splits["train"][0])
    return Source(root.name, *splits["train"], *splits["test"], len(classes), mean, std)


def _files(folder: Path) -> dict[str, list[Path]]:
    """The images of each class."""
    found = {
        path.name: sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    found = {name: paths for name, paths in found.items() if paths}
    if len(found) < 2:
        raise UserError(f"{folder} holds images of {len(found)} classes: put each class into a folder of its own")
    return found


def _read(files: dict[str, list[Path]], classes: list[str], size: int) -> tuple[Tensor, Tensor]:
    import numpy as np
    from PIL import Image

    paths = [(path, label) for label, name in enumerate(classes) for path in files[name]]
    inputs = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for row, (path, _) in enumerate(paths):
        try:
            with Image.open(path) as image:
                pixels = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        except Exception as error:  # whatever a decoder makes of foreign bytes
            raise UserError(f"image {path} cannot be read: {in_one_line(error)}") from error
        inputs[row] = torch.from_numpy(np.asarray(pixels).copy()).permute(2, 0, 1)
    return inputs, torch.tensor([label for _, label in paths])
