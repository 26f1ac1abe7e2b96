"""Experience replay, against forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.plugins import ReplayPlugin as AvalancheReplayPlugin
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.identity import number_of, whole_stream
from plasticity_cl.parts.values import Count, limit
from plasticity_cl.training.learner import Learner


class ReplayPlugin(AvalancheReplayPlugin):  # type: ignore[misc]
    """Avalanche's ``ReplayPlugin``, with a memory that can be saved.

    Trains on as many samples from the memory as from the experience in each step. The memory is divided equally over
    the experiences so far; which samples of an experience stay is drawn from torch's global generator.

    What is saved are not the samples but which they are: the numbers of the experiences and the rows within them. They
    are looked up in the stream when the training goes on, and shown with its transforms.

    Args:
        mem_size: Samples in the memory, at least 1.

    Raises:
        UserError: If ``mem_size`` is below 1.
    """

    acts_on_first_experience = False

    def __init__(self, mem_size: Count = 200) -> None:
        limit(Count, "mem_size", mem_size)
        super().__init__(mem_size=mem_size, storage_policy=_Memory(mem_size))

    def before_training_exp(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Bring the loader that mixes the experience with the memory."""
        self.storage_policy.look_up(strategy.experience)
        super().before_training_exp(strategy, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The number of each experience in the memory, and its rows there, ``[n]`` int64."""
        return {"parts": [{"experience": part.number, "rows": part.rows} for part in self.storage_policy.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        self.storage_policy.parts = [_Part(part["experience"], part["rows"].cpu()) for part in state["parts"]]


@dataclass
class _Part:
    """What is kept of one experience; ``number`` is -1 for one that no stream gives again."""

    number: int
    rows: Tensor
    dataset: Any = None


class _Memory(ExemplarsBuffer):  # type: ignore[misc]
    """Avalanche's ``ExperienceBalancedBuffer``, to the last bit, which knows the rows that it holds."""

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)
        self.parts: list[_Part] = []

    @property
    def buffer(self) -> Any:
        """The samples, an experience after the other."""
        return concat_datasets([part.dataset.subset(part.rows.tolist()) for part in self.parts])

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Make room, and keep samples of the experience: those with the largest of uniform random numbers."""
        sizes = self._sizes(len(self.parts) + 1)
        rows = torch.rand(len(exp.dataset)).sort(descending=True).indices
        alone = whole_stream(exp) is None or isinstance(exp, OnlineCLExperience)
        self.parts.append(_Part(-1 if alone else number_of(exp), rows, exp.dataset))
        self._cut(sizes)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change the number of samples that there is room for."""
        self.max_size = new_size
        self._cut(self._sizes(len(self.parts)))

    def look_up(self, experience: Any) -> None:
        """Find the data of the experiences that a loaded memory names, in the stream that ``experience`` is of.

        Raises:
            UserError: If there is no such stream.
        """
        whole = whole_stream(experience)
        for part in self.parts:
            if part.dataset is None:
                is_there = whole is not None and 0 <= part.number < len(whole)
                found = whole[part.number].dataset if is_there else ()
                if not is_there or bool((part.rows >= len(found)).any()):
                    raise UserError(
                        "the memory of replay that was loaded names samples by experience and row, and the stream that "
                        "is trained on has no such samples: go on with the one that it was filled from, in whole "
                        "experiences"
                    )
                part.dataset = found

    def _sizes(self, n_parts: int) -> list[int]:
        each, rest = divmod(self.max_size, n_parts) if n_parts else (0, 0)
        return [each + (i < rest) for i in range(n_parts)]

    def _cut(self, sizes: list[int]) -> None:
        for part, size in zip(self.parts, sizes, strict=True):
            part.rows = part.rows[:size].clone()
