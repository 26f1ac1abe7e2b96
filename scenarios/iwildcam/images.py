"""Images that stay on disk: decoded when a batch asks for them, or once and for all into a memory map."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from plasticity_cl.errors import UserError, in_one_line
from plasticity_cl.images import to_float
from plasticity_cl.training import Samples
from plasticity_cl.training.augmentation import CropFlip
from plasticity_cl.writing import write_atomically

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per channel, in units of [0, 1]: what networks trained on ImageNet expect."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per channel, likewise."""

Unreadable = Literal["raise", "skip"]
Bytes = npt.NDArray[np.uint8]

_BLOCK = 64
"""Images that a thread decodes at a time."""
_BLOCKS_BETWEEN_NOTES = 8
_MOST_PIXELS = 2**30 // 12
"""Headers that say more are damaged: Pillow warns of a decompression bomb here, and refuses twice as much."""
_DEVICE_LIMIT = 2 * 1024**3
"""An experience with more bytes of images than this is not copied to the device as a whole."""


class UnreadableImageError(UserError):
    """An image that is missing, truncated, of an absurd size or no image."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files, and the size at which they are wanted.

    Attributes:
        folder: Where they are.
        names: ``[N]`` their paths below the folder.
        size: Height and width in pixels; the whole image is scaled to it, whatever its proportions.
    """

    folder: Path
    names: Sequence[str]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> Bytes:
        """Decode one image.

        JPEG files are decoded at the smallest of their scales (1, 1/2, 1/4, 1/8) that is no smaller than ``size`` and
        then scaled with a triangle filter as wide as the reduction asks for.

        Args:
            row: Which one.

        Returns:
            ``[3, height, width]``; RGB, whatever the file has.

        Raises:
            UnreadableImageError: If the file is missing, truncated or no image, or its header says so many
                pixels that Pillow suspects a decompression bomb.
        """
        path = self.folder / str(self.names[row])
        height, width = self.size
        try:
            with Image.open(path) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"its header says {image.width} x {image.height} pixels")
                image.draft("RGB", (width, height))
                rgb = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        except FileNotFoundError:
            raise UnreadableImageError(f"there is no image {path}") from None
        except Exception as error:
            # Pillow's parsers raise whatever a damaged file makes them stumble over: errors of reading and of syntax,
            # EOFError, struct.error, and for headers of absurd size DecompressionBombError or MemoryError.
            reason = in_one_line(error).replace(f" {str(path)!r}", "") or type(error).__name__
            raise UnreadableImageError(f"cannot read the image {path}: {reason}") from error
        pixels = np.asarray(rgb)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class MappedSamples(Samples):
    """Samples whose images are in a memory map, which holds those of all experiences and is never copied as a whole.

    Args:
        As for :class:`Samples`; ``indices`` must be given.
    """

    indices: Tensor

    def to(self, device: torch.device) -> Samples:
        """The images of this experience alone on an accelerator, where they are few enough.

        Otherwise itself: batches are then gathered on the CPU, and moved by the strategy.
        """
        if device.type == "cpu" or len(self) * self.inputs[0].numel() > _DEVICE_LIMIT:
            return self
        return Samples(
            self.inputs.index_select(0, self.indices).to(device),
            self.targets.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
            augmentation=self.augmentation,
        )

    def augmented(self, augmentation: CropFlip | None) -> Samples:
        """The same samples with an augmentation; without any when ``None``."""
        return MappedSamples(
            self.inputs,
            self.targets,
            indices=self.indices,
            mean=self.mean,
            std=self.std,
            augmentation=augmentation,
        )


class DecodedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images that are decoded each time that they are asked for, by whoever asks: workers, if a loader has them.

    Args:
        files: Where the images are.
        rows: ``[n]`` which of them.
        targets: ``[n]`` int64 classes.
    """

    def __init__(self, files: ImageFiles, rows: npt.NDArray[np.int64], targets: Tensor) -> None:
        self.files, self.rows, self.targets = files, rows, targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(self.files.read(int(self.rows[index])))
        return to_float(image, IMAGENET_MEAN, IMAGENET_STD), self.targets[index]


class ImageStore:
    """Gives experiences their images, from a cache that is made when it is first needed, or decoded as they are used.

    Args:
        files: Where the images are.
        cache: The folder of this data set's cache at this size, or ``None`` to decode images as they are used.
        unreadable: ``"raise"`` an error for an image that cannot be read, or ``"skip"`` it, which needs a cache:
            without one nobody knows beforehand which images are sound.

    Raises:
        UserError: If images are to be skipped without a cache.
    """

    def __init__(self, files: ImageFiles, cache: Path | None, unreadable: Unreadable) -> None:
        if unreadable == "skip" and cache is None:
            raise UserError("unreadable='skip' needs the cache, whose making finds out which images can be read")
        self.files, self.cache, self.unreadable = files, cache, unreadable
        self._mapped: tuple[Tensor, npt.NDArray[np.int64]] | None = None

    @property
    def skipped(self) -> list[str]:
        """The files that were left out of every experience; known once the cache is made, which this does."""
        if self.cache is None:
            return []
        return [str(self.files.names[row]) for row in self._map(self.cache)[1]]

    def images(self, rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> MappedSamples | DecodedImages:
        """The images of some rows, with a cache or without.

        Args:
            rows: ``[n]``.
            targets: ``[N]`` the class of every row of the data set.

        Raises:
            UserError: If an image cannot be read, or the cache cannot be written.
        """
        if self.cache is None:
            return DecodedImages(self.files, rows, torch.from_numpy(targets[rows]))
        images, skipped = self._map(self.cache)
        sound = rows[~np.isin(rows, skipped)]
        if len(sound) == 0:
            raise UnreadableImageError(f"none of the {len(rows)} images of an experience can be read")
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        return MappedSamples(
            images, torch.from_numpy(targets[sound]), indices=torch.from_numpy(sound), mean=mean, std=std
        )

    def _map(self, folder: Path) -> tuple[Tensor, npt.NDArray[np.int64]]:
        if self._mapped is None:
            self._mapped = open_cache(self.files, folder, self.unreadable)
        return self._mapped


def open_cache(
    files: ImageFiles, folder: Path, unreadable: Unreadable = "raise", workers: int | None = None
) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Map the cache of image files into memory; make it first, or go on making it, where it is not complete.

    The cache is ``images.u8``, the images' bytes one after the other, and ``complete.json``, which appears when all are
    there. While it is made, ``progress.json`` says how many are safely on disk: whatever kills the making, the next
    call goes on from there and ends with the same bytes. Of several processes one makes it, the others wait.

    Args:
        files: What to decode.
        folder: The cache's own folder, named by what the bytes depend on.
        unreadable: ``"raise"`` at the first image that cannot be read, or ``"skip"`` it: its bytes are zeros.
        workers: Threads that decode; one for each CPU when ``None``. Decoding leaves the interpreter free.

    Returns:
        ``[N, 3, height, width]`` uint8, in memory only as far as it is read; and the rows that could not be read.

    Raises:
        UserError: If an image cannot be read, the disk is too small, or the folder cannot be written.
    """
    marker = folder / "complete.json"
    if not marker.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / "lock"):
                if not marker.exists():
                    _make(files, folder, unreadable, workers or os.cpu_count() or 1)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"cannot write the image cache {folder}: {reason}; make room, or choose another folder with cache=..."
            ) from error
    shape = (len(files), 3, *files.size)
    skipped = _read_note(marker).unreadable
    if skipped and unreadable == "raise":
        raise UnreadableImageError(
            f"{len(skipped)} of {len(files)} images could not be read when {folder} was made, the first is "
            f"{files.folder / str(files.names[skipped[0]])}; mend them and remove that folder, or say unreadable='skip'"
        )
    # Copy on write: torch wants memory that may be written to, and nothing that is written must reach the file.
    images = np.memmap(folder / "images.u8", dtype=np.uint8, mode="c", shape=shape)
    return torch.from_numpy(images), np.array(skipped, dtype=np.int64)


@dataclass(frozen=True)
class _Note:
    """How many rows are done, and which of them could not be read."""

    done: int
    unreadable: list[int]


def _read_note(path: Path) -> _Note:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return _Note(int(saved["done"]), [int(row) for row in saved["unreadable"]])
    except FileNotFoundError:
        return _Note(0, [])


def _write_note(path: Path, note: _Note) -> None:
    write_atomically(path, json.dumps(vars(note)), durable=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        # The lock goes when its process does, however that ends.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(files: ImageFiles, folder: Path, unreadable: Unreadable, workers: int) -> None:
    images, progress = folder / "images.u8", folder / "progress.json"
    for left in folder.glob(".progress.json.*"):  # by one that was killed while it wrote; nobody else is at work here
        left.unlink()
    size = 3 * files.size[0] * files.size[1]
    note = _read_note(progress)
    missing = size * (len(files) - note.done)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"the image cache {folder} needs {missing / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB left: "
            "make room, choose another folder with cache=..., a smaller size, or cache=False"
        )
    descriptor = os.open(images, os.O_RDWR | os.O_CREAT, 0o666)
    pool = ThreadPoolExecutor(workers)
    # The bar is for eyes. Where there are none it is not even made: its lock is one for all processes that are forked
    # off each other, and one of them that is killed under it would stop the others for ever.
    shown = sys.stderr.isatty()
    bar = tqdm(total=len(files), initial=note.done, unit="img", desc="caching images", leave=False) if shown else None
    try:
        os.ftruncate(descriptor, size * len(files))
        blocks = [range(start, min(start + _BLOCK, len(files))) for start in range(note.done, len(files), _BLOCK)]
        running: deque[Future[tuple[Bytes, list[int]]]] = deque()
        failed = list(note.unreadable)
        for number, block in enumerate(blocks):
            while len(running) < 2 * workers and number + len(running) < len(blocks):
                running.append(pool.submit(_decode, files, blocks[number + len(running)], unreadable))
            decoded, rows = running.popleft().result()
            _write_all(descriptor, decoded, block.start * size)
            failed += rows
            if bar is not None:
                bar.update(len(block))
            if number % _BLOCKS_BETWEEN_NOTES == _BLOCKS_BETWEEN_NOTES - 1 or number == len(blocks) - 1:
                os.fsync(descriptor)
                _write_note(progress, _Note(block.stop, failed))
        _write_note(folder / "complete.json", _Note(len(files), failed))
        progress.unlink(missing_ok=True)
    finally:
        pool.shutdown(cancel_futures=True)
        if bar is not None:
            bar.close()
        os.close(descriptor)


def _decode(files: ImageFiles, rows: range, unreadable: Unreadable) -> tuple[Bytes, list[int]]:
    decoded = np.zeros((len(rows), 3, *files.size), dtype=np.uint8)
    failed = []
    for i, row in enumerate(rows):
        try:
            decoded[i] = files.read(row)
        except UnreadableImageError:
            if unreadable == "raise":
                raise
            failed.append(row)
    return decoded, failed


def _write_all(descriptor: int, data: Bytes, offset: int) -> None:
    # A write, not a store into the map: when the disk is full the one raises, the other kills the process.
    view = memoryview(data.data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
