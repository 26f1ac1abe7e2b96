"""Data sets that hold whole tensors, and the loader that gathers batches from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups
from torch import Tensor
from torch.utils.data import Dataset

from plasticity_cl.errors import UserError
from plasticity_cl.images import to_float


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Inputs shared by a whole stream, seen with the targets of one experience.

    Only ``targets``, ``indices`` and ``permutation`` belong to the experience; ``inputs`` is never copied.

    Args:
        inputs: ``[N, C, H, W]``, or any ``[N, ...]``; float as it goes into the network, or uint8 images.
        targets: ``[n]`` int64 classes, or ``[n, d]`` float regression targets.
        indices: ``[n]`` rows of ``inputs`` that the experience holds; all of them when ``None``.
        permutation: ``[C * H * W]``: position ``j`` of a sample shows what stood at ``permutation[j]``.
        mean: Per-channel mean, in units of [0, 1], that uint8 images are standardised with.
        std: Per-channel standard deviation, likewise.

    Raises:
        UserError: If the experience holds no sample, or another number of targets than of inputs.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        indices: Tensor | None = None,
        permutation: Tensor | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        size = len(inputs) if indices is None else len(indices)
        if size == 0:
            raise UserError("an experience is empty: ask for more samples, or for fewer experiences")
        if len(targets) != size:
            raise UserError(f"{size} inputs but {len(targets)} targets: give one target for each input")
        self.inputs, self.targets, self.indices, self.permutation = inputs, targets, indices, permutation
        self.mean = torch.empty(0) if mean is None else mean
        self.std = torch.empty(0) if std is None else std

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch(torch.tensor([index]))
        return inputs[0], targets[0]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gather a batch.

        Args:
            rows: ``[b]`` int64 positions within the experience.

        Returns:
            Float inputs ``[b, ...]`` and targets ``[b]`` or ``[b, d]``.
        """
        if rows.device != self.targets.device:
            rows = rows.to(self.targets.device)
        inputs = self.inputs[rows if self.indices is None else self.indices[rows]]
        if inputs.dtype == torch.uint8:
            inputs = to_float(inputs, self.mean, self.std)
        if self.permutation is not None:
            inputs = inputs.flatten(1)[:, self.permutation].view_as(inputs)
        return inputs, self.targets[rows]

    def to(self, device: torch.device) -> Samples:
        """The same samples on ``device``; itself when they are there already."""
        if self.targets.device == device and self.inputs.device == device:
            return self

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return Samples(
            self.inputs.to(device),
            self.targets.to(device),
            indices=move(self.indices),
            permutation=move(self.permutation),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


class _Integers(Sequence[int]):
    """A tensor of labels as a sequence of ints, made one by one: a list of 60,000 would be built for nobody."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return int(self._labels[index])


class InMemoryExperience(DatasetExperience):  # type: ignore[misc]
    """An Avalanche experience over :class:`Samples`; classification data sets carry Avalanche's ``targets``."""

    def __init__(self, samples: Samples) -> None:
        attributes = []
        if not samples.targets.is_floating_point():
            attributes.append(DataAttribute(_Integers(samples.targets), "targets"))
        super().__init__(dataset=AvalancheDataset([samples], data_attributes=attributes))
        self.samples = samples

    @property
    def classes_in_this_experience(self) -> list[int]:
        """The classes that occur, in rising order; none in regression."""
        if self.samples.targets.is_floating_point():
            return []
        return self.samples.targets.unique().tolist()  # type: ignore[no-untyped-call, no-any-return]


def samples_of(dataset: AvalancheDataset) -> Samples | None:
    """Find the :class:`Samples` that ``dataset`` shows as they are.

    Returns:
        ``None`` where the data set is anything else: a subset, a concatenation, or one with transforms of its own.
        Batches gathered from tensors would then differ from what the data set holds.
    """
    flat: Any = getattr(dataset, "_flat_data", None)
    if flat is None or len(flat._datasets) != 1 or flat._indices is not None:
        return None
    if any(attribute.use_in_getitem for attribute in dataset._data_attributes.values()):
        return None
    if not all(isinstance(g, EmptyTransformGroups) for g in (flat._transform_groups, flat._frozen_transform_groups)):
        return None
    return flat._datasets[0] if isinstance(flat._datasets[0], Samples) else None


class SamplesLoader:
    """Batches gathered from tensors, in the order that PyTorch's ``DataLoader`` would give them.

    Each pass draws from torch's global generator exactly what a ``DataLoader`` draws (its base seed and, when it
    shuffles, the sampler's seed), so that a run gives the same weights with either.

    Args:
        samples: What to gather from, on the device of the training.
        batch_size: Samples in a batch.
        shuffle: Whether each pass is in a new random order.
        drop_last: Whether a last, smaller batch is left out.
    """

    def __init__(self, samples: Samples, batch_size: int, *, shuffle: bool, drop_last: bool = False) -> None:
        self.samples, self.batch_size, self.shuffle, self.drop_last = samples, batch_size, shuffle, drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self.samples), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Tensor]]:
        torch.empty((), dtype=torch.int64).random_()
        size = len(self.samples)
        if self.shuffle:
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        else:
            order = torch.arange(size)
        order = order.to(self.samples.targets.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield list(self.samples.batch(order[start : start + self.batch_size]))
