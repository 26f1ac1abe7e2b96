"""Arrays in an ``.npz`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plasticity_cl.errors import UserError, in_one_line
from plasticity_cl.parts.values import File
from plasticity_cl.scenarios.sources.source import Source, channel_constants

_NAMES = {
    "train_inputs": ("train_inputs", "x_train", "train_images", "train_x"),
    "train_labels": ("train_labels", "y_train", "train_y"),
    "test_inputs": ("test_inputs", "x_test", "test_images", "test_x"),
    "test_labels": ("test_labels", "y_test", "test_y"),
}


def npz(file: File) -> Source:
    """Arrays of your own, as numpy's ``savez`` writes them: train_inputs, train_labels, test_inputs, test_labels.

    ``x_train``, ``y_train``, ``x_test`` and ``y_test`` are understood, too. Inputs are uint8 images, ``[n, C, H, W]``,
    ``[n, H, W, C]`` or ``[n, H, W]``, which training sees standardised by the training images' mean and standard
    deviation per channel; or floats, which are taken as they are, ``[n, d]`` as images of one row. Labels are whole
    numbers from 0 on. Nothing but arrays of numbers is read from the file.

    Args:
        file: The file.

    Raises:
        UserError: If the file cannot be read, or its arrays are others.
    """
    path = Path(file).expanduser()
    arrays = _arrays(path)
    inputs = {split: _images(path, f"{split}_inputs", arrays) for split in ("train", "test")}
    labels = {split: _labels(path, f"{split}_labels", arrays) for split in ("train", "test")}
    if inputs["train"].dtype == torch.uint8:
        mean, std = channel_constants(inputs["train"])
    else:
        mean, std = (), ()
    n_classes = 1 + max((int(of.max()) for of in labels.values() if len(of)), default=0)
    return Source(path.stem, inputs["train"], labels["train"], inputs["test"], labels["test"], n_classes, mean, std)


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            found = {}
            for name, known in _NAMES.items():
                there = next((alias for alias in known if alias in file), None)
                if there is None:
                    raise UserError(f"{path} has no array {' or '.join(known[:2])}: it has {', '.join(file) or 'none'}")
                found[name] = file[there]
            return found
    except UserError:
        raise
    except Exception as error:  # whatever numpy makes of foreign bytes
        raise UserError(f"{path} cannot be read as an .npz file: {in_one_line(error)}") from error


def _images(path: Path, name: str, arrays: dict[str, Any]) -> Tensor:
    array = arrays[name]
    if array.dtype.kind not in "fu" or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        raise UserError(f"{name} of {path} are {array.dtype}: save uint8 images or floats")
    inputs = torch.from_numpy(array)
    if inputs.is_floating_point():
        inputs = inputs.float()
    if inputs.dim() == 2:
        return inputs[:, None, None, :]
    if inputs.dim() == 3:
        return inputs[:, None]
    if inputs.dim() == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] not in (1, 3):
        return inputs.permute(0, 3, 1, 2).contiguous()
    return inputs


def _labels(path: Path, name: str, arrays: dict[str, Any]) -> Tensor:
    array = arrays[name].squeeze() if arrays[name].ndim == 2 and arrays[name].shape[1] == 1 else arrays[name]
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} of {path} are {array.dtype}: save whole numbers, the classes from 0 on")
    return torch.from_numpy(array.astype("int64"))
