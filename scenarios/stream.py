"""The lazy in-memory stream that every scenario shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.generic_scenario import SequenceCLStream
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.training import InMemoryExperience, Samples

Task = Literal["classification", "regression"]
Split = Literal["train", "test"]


class LazyStream(SequenceCLStream):  # type: ignore[misc]
    """A stream whose experiences are made from a seed when asked for, and not kept.

    Any order of access gives the same data, and hundreds of experiences cost what one costs.

    Args:
        name: ``"train"`` or ``"test"``.
        n_experiences: Length of the stream.
        make_samples: Gives the samples of experience ``k``; must depend on ``k`` alone.
    """

    def __init__(self, name: str, n_experiences: int, make_samples: Callable[[int], Samples]) -> None:
        # Avalanche would number stream[-1] as experience -1; the numbers are set here instead.
        super().__init__(name, benchmark=None, set_stream_info=False)
        self._n_experiences, self._make_samples = n_experiences, make_samples

    def _full_length(self) -> int:
        return self._n_experiences

    def _make_experience(self, experience_idx: int) -> InMemoryExperience:
        number = experience_idx + self._n_experiences if experience_idx < 0 else experience_idx
        if not 0 <= number < self._n_experiences:
            raise IndexError(f"experience {experience_idx} of a stream of {self._n_experiences}")
        experience = InMemoryExperience(self._make_samples(number))
        experience.current_experience = number
        experience.origin_stream = self
        return experience


class InMemoryScenario(CLScenario):  # type: ignore[misc]
    """An Avalanche benchmark over one source: ``train_stream`` and ``test_stream``, lazy and in memory.

    Args:
        name: The scenario's name, as the command line has it.
        n_experiences: Length of both streams.
        train: Gives the training samples of experience ``k``.
        test: Gives the test samples of experience ``k``.
        input_shape: Shape of one input.
        n_outputs: Classes, or regression outputs.
        task: What the targets are.
        exchangeable: Whether all experiences are equally hard for a fresh network, so that a few fresh networks can
            stand for all.
        forgetting_counts: Whether what was learned of an experience still holds at the end. Where the same inputs get
            other targets later, a network that forgets the old ones has lost nothing that it should have kept.

    Raises:
        UserError: If ``n_experiences`` is below 1.
    """

    def __init__(
        self,
        name: str,
        n_experiences: int,
        train: Callable[[int], Samples],
        test: Callable[[int], Samples],
        *,
        input_shape: tuple[int, ...],
        n_outputs: int,
        task: Task = "classification",
        exchangeable: bool = False,
        forgetting_counts: bool = True,
    ) -> None:
        if n_experiences < 1:
            raise UserError(f"n_experiences is {n_experiences}: a stream needs at least 1 experience")
        self.train_stream: LazyStream
        self.test_stream: LazyStream
        streams = [LazyStream("train", n_experiences, train), LazyStream("test", n_experiences, test)]
        super().__init__(streams)
        for stream in streams:
            stream.benchmark = self
        self.name, self.input_shape, self.n_outputs = name, input_shape, n_outputs
        self.task, self.exchangeable, self.forgetting_counts = task, exchangeable, forgetting_counts


def first_samples(source: Source, n_samples: int | None) -> int:
    """How many of the source's training samples a stream uses.

    Raises:
        UserError: If more are asked for than there are, or fewer than one.
    """
    available = len(source.train_labels)
    if n_samples is None:
        return available
    if not 1 <= n_samples <= available:
        raise UserError(f"n_samples is {n_samples}: {source.name} has {available} training samples, ask for 1 to that")
    return n_samples


def source_samples(
    source: Source,
    split: Split,
    targets: Tensor,
    *,
    size: int | None = None,
    indices: Tensor | None = None,
    permutation: Tensor | None = None,
) -> Samples:
    """The images of a source with the targets of an experience.

    Args:
        source: Whose images.
        split: Which of its two sets.
        targets: ``[n]`` or ``[n, d]``.
        size: The first so many images only.
        indices: ``[n]`` rows of the images; all when ``None``.
        permutation: Order of the pixels, as in :class:`~plasticity_cl.training.Samples`.
    """
    inputs = source.train_inputs if split == "train" else source.test_inputs
    return Samples(
        inputs[:size],
        targets,
        indices=indices,
        permutation=permutation,
        mean=torch.tensor(source.mean) if source.mean else None,
        std=torch.tensor(source.std) if source.std else None,
    )
