"""Where in a run a strategy is: when an experience begins and ends, mini experiences taken together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avalanche.benchmarks import OnlineCLExperience

from plasticity_cl.metrics.identity import number_of


@dataclass
class Passage:
    """The passage of one strategy through the experiences that it trains on.

    The mini experiences of an online stream are one experience, their origin: it begins with the first and ends with
    the last of them.

    Attributes:
        number: Of the experience, in its stream.
    """

    number: int = -1
    _parts: int = 0

    def state_dict(self) -> dict[str, int]:
        """The number of the experience, and how many of its parts were trained on."""
        return {"number": self.number, "parts": self._parts}

    @classmethod
    def from_state(cls, state: dict[str, int]) -> Passage:
        """The passage that :meth:`state_dict` was of."""
        return cls(state["number"], state["parts"])

    def begin(self, experience: Any) -> bool:
        """Take note of a training on ``experience``: whether it begins one, or goes on with one."""
        number = number_of(experience)
        part = isinstance(experience, OnlineCLExperience)
        begins = not part or experience.is_first_subexp or number != self.number
        self.number, self._parts = number, 1 if begins else self._parts + 1
        return begins

    def ends(self, experience: Any) -> bool:
        """Whether the training on ``experience``, which has begun, ends one."""
        if not isinstance(experience, OnlineCLExperience):
            return True
        # Avalanche marks no last part where the parts are of one size: count them.
        return bool(experience.is_last_subexp or self._parts == experience.sub_stream_length)
