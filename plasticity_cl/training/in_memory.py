"""Data sets that hold whole tensors, and the loader that gathers batches from them."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from avalanche.benchmarks.utils.transforms import TupleTransform
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.weak import WeakTensorKeyDictionary

from plasticity_cl.errors import UserError
from plasticity_cl.images import to_float
from plasticity_cl.training.augmentation import CropFlip
from plasticity_cl.training.avalanche_names import shown_whole


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
        augmentation: What training does to images anew in every epoch; evaluation sees them as they are.

    Raises:
        UserError: If the experience holds no sample, or another number of targets than of inputs; if there is
            something to augment that is no image.
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
        augmentation: CropFlip | None = None,
    ) -> None:
        size = len(inputs) if indices is None else len(indices)
        if size == 0:
            raise UserError("an experience is empty: ask for more samples, or for fewer experiences")
        if len(targets) != size:
            raise UserError(f"{size} inputs but {len(targets)} targets: give one target for each input")
        if augmentation is not None and (inputs.dim() != 4 or permutation is not None):
            raise UserError(
                f"augmentation needs images [N, C, H, W] with their pixels in place, got {list(inputs.shape)}"
                + (" with a permutation" if permutation is not None else "")
            )
        self.inputs, self.targets, self.indices, self.permutation = inputs, targets, indices, permutation
        self.augmentation = augmentation
        self.mean = torch.empty(0) if mean is None else mean
        self.std = torch.empty(0) if std is None else std

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch(torch.tensor([index]))
        return inputs[0], targets[0]

    def batch(self, rows: Tensor, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gather a batch.

        Args:
            rows: ``[b]`` int64 positions within the experience.
            drawn: What ``augmentation`` drew for these samples; they are not augmented when ``None``.

        Returns:
            Float inputs ``[b, ...]`` and targets ``[b]`` or ``[b, d]``.
        """
        if rows.device != self.targets.device:
            rows = rows.to(self.targets.device)
        inputs = self.inputs.index_select(0, rows if self.indices is None else self.indices[rows])
        if drawn is not None:
            assert self.augmentation is not None
            inputs = self.augmentation.apply(inputs, drawn.to(inputs.device))
        if inputs.dtype == torch.uint8:
            inputs = to_float(inputs, self.mean, self.std)
        if self.permutation is not None:
            inputs = inputs.flatten(1)[:, self.permutation].view_as(inputs)
        return inputs, self.targets.index_select(0, rows)

    def to(self, device: torch.device) -> Samples:
        """The same samples on ``device``; itself when they are there already.

        Inputs that many experiences share are moved once, and the copy goes when the original goes.
        """
        device = torch.empty(0, device=device).device  # "cuda" is "cuda:0", or whichever is the current one
        if self.targets.device == device and self.inputs.device == device:
            return self

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return Samples(
            _shared_copy(self.inputs, device),
            self.targets.to(device),
            indices=move(self.indices),
            permutation=move(self.permutation),
            mean=self.mean.to(device),
            std=self.std.to(device),
            augmentation=self.augmentation,
        )

    def augmented(self, augmentation: CropFlip | None) -> Samples:
        """The same samples with an augmentation; without any when ``None``."""
        return Samples(
            self.inputs,
            self.targets,
            indices=self.indices,
            permutation=self.permutation,
            mean=self.mean,
            std=self.std,
            augmentation=augmentation,
        )


# From the tensor that owns the memory to its last copies, one a device; an entry goes with its tensor.
_copies: MutableMapping[Tensor, dict[torch.device, tuple[object, Tensor]]] = WeakTensorKeyDictionary()


def _shared_copy(inputs: Tensor, device: torch.device) -> Tensor:
    """``inputs`` on ``device``, moved once as long as they are the same.

    Each experience may bring a new view of one tensor: what counts is the memory that it shows, and that nobody has
    written to it since.
    """
    if inputs.device == device or inputs.is_inference():
        return inputs.to(device)
    owner = inputs if inputs._base is None else inputs._base
    shown = (inputs._version, inputs.dtype, inputs.shape, inputs.stride(), inputs.storage_offset())
    copies = _copies.setdefault(owner, {})
    if device not in copies or copies[device][0] != shown:
        copies[device] = (shown, inputs.to(device))
    return copies[device][1]


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
        transforms = None
        if samples.augmentation is not None:
            transforms = TransformGroups({"train": (_AugmentOne(samples), None), "eval": None})
        dataset = AvalancheDataset([samples], data_attributes=attributes, transform_groups=transforms)
        super().__init__(dataset=dataset)
        self.samples = samples

    @property
    def classes_in_this_experience(self) -> list[int]:
        """The classes that occur, in rising order; none in regression."""
        if self.samples.targets.is_floating_point():
            return []
        return self.samples.targets.unique().tolist()  # type: ignore[no-untyped-call, no-any-return]


class _AugmentOne:
    """The augmentation of ``samples`` for one image at a time, as Avalanche's data sets apply it: after conversion."""

    def __init__(self, samples: Samples) -> None:
        assert samples.augmentation is not None
        self._augmentation = samples.augmentation
        fill = torch.full((samples.inputs.shape[1], 1, 1), samples.augmentation.fill).to(samples.inputs.dtype)
        self._fill = to_float(fill, samples.mean.cpu(), samples.std.cpu())

    def __call__(self, image: Tensor) -> Tensor:
        drawn = self._augmentation.draw(1).to(image.device)
        return self._augmentation.apply(image[None], drawn, self._fill)[0]


def samples_of(dataset: AvalancheDataset) -> Samples | None:
    """Find the :class:`Samples` that ``dataset`` shows as they are.

    Returns:
        ``None`` where the data set is anything else: a subset, a concatenation, or one with transforms of its own.
        Batches gathered from tensors would then differ from what the data set holds. An augmentation is that of the
        samples where the data set is set to training, and gone where it is set to evaluation.
    """
    inner, transforms = shown_whole(dataset)
    augmented = False
    for transform in transforms:
        if not isinstance(transform, TupleTransform) or not isinstance(transform.transforms[0], _AugmentOne):
            return None
        augmented = True
    if not isinstance(inner, Samples):
        return None
    return inner if augmented or inner.augmentation is None else inner.augmented(None)


class SamplesLoader:
    """Batches gathered from tensors, in the order that PyTorch's ``DataLoader`` would give them.

    A :class:`~plasticity_cl.training.loader.DeviceLoader`. It holds nothing from one pass to the next.

    Each pass draws from torch's global generator exactly what a ``DataLoader`` draws (its base seed and, when it
    shuffles, the sampler's seed), so that a run gives the same weights with either. Where the samples are augmented it
    draws one more seed.

    Many batches are gathered at a time, and then cut: a batch alone would cost several times what it holds.

    Args:
        samples: What to gather from, on the device of the training.
        batch_size: Samples in a batch.
        shuffle: Whether each pass is in a new random order.
        drop_last: Whether a last, smaller batch is left out.
    """

    batches_on_device: ClassVar[bool] = True

    def __init__(self, samples: Samples, batch_size: int, *, shuffle: bool, drop_last: bool = False) -> None:
        self.samples, self.batch_size, self.shuffle, self.drop_last = samples, batch_size, shuffle, drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self.samples), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Tensor]]:
        torch.empty((), dtype=torch.int64).random_()
        samples, size = self.samples, len(self.samples)
        order = torch.randperm(size, generator=_drawn_generator()) if self.shuffle else torch.arange(size)
        drawn = None
        if samples.augmentation is not None:
            drawn = samples.augmentation.draw(size, _drawn_generator()).to(samples.targets.device)
        order = order.to(samples.targets.device)
        together = self.batch_size * self._batches_together()
        stop = min(len(self) * self.batch_size, size)
        for start in range(0, stop, together):
            chunk = slice(start, min(start + together, stop))
            inputs, targets = samples.batch(order[chunk], None if drawn is None else drawn[chunk])
            # Not `split`: its parts count as views of one tensor, which may not be changed in place one by one.
            parts = zip(inputs.unsafe_split(self.batch_size), targets.unsafe_split(self.batch_size), strict=True)
            yield from map(list, parts)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what it draws comes from torch's global generator."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""

    def _batches_together(self) -> int:
        inputs, targets = self.samples.inputs[0], self.samples.targets[0]
        per_sample = [inputs.numel() * (4 if inputs.dtype == torch.uint8 else inputs.element_size())]
        if targets.is_floating_point():
            per_sample.append(targets.numel() * targets.element_size())
        # Each batch must start where a tensor of its own would: kernels may round otherwise where memory is aligned
        # otherwise.
        if any(self.batch_size * size % _ALIGNMENT for size in per_sample):
            return 1
        limit = _CHUNK_BYTES["cpu" if inputs.device.type == "cpu" else "other"]
        return max(1, limit // (self.batch_size * per_sample[0]))


_ALIGNMENT = 64
_CHUNK_BYTES = {"cpu": 2**20, "other": 2**26}


def _drawn_generator() -> torch.Generator:
    """A generator of its own, with a seed drawn from torch's global one."""
    return torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
