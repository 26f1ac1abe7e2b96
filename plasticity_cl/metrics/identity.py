"""Which experience it is: streams give experiences numbers, and mini experiences of an online stream one each."""

from __future__ import annotations

import gc
from typing import Any

from avalanche.benchmarks import CLStream

from plasticity_cl.training.avalanche_names import stream_of, whole_experience

__all__ = [
    "benchmark_of",
    "number_of",
    "stream_length",
    "stream_name",
    "stream_of",
    "streams_of_benchmark",
    "whole_experience",
    "whole_stream",
]


def number_of(experience: Any) -> int:
    """The number of the (whole) experience in its stream, from 0."""
    return int(whole_experience(experience).current_experience)


def benchmark_of(experience: Any) -> Any:
    """What the numbers of experiences are numbers in: the benchmark, or the stream where it knows of none."""
    stream = stream_of(experience)
    return getattr(stream, "benchmark", None) or stream


def streams_of_benchmark(experience: Any) -> dict[str, Any]:
    """Every stream of the benchmark by name, as far as they can be found.

    The streams of most of Avalanche's benchmarks do not know which benchmark they are of; then the dictionary of
    streams is looked for that holds this one.
    """
    stream = stream_of(experience)
    if stream is None:
        return {}
    if getattr(stream, "benchmark", None) is not None:
        return dict(stream.benchmark.streams)
    for holder in gc.get_referrers(stream):
        holds_streams = isinstance(holder, dict) and holder.get(stream.name) is stream
        if holds_streams and all(isinstance(value, CLStream) for value in holder.values()):
            return dict(holder)
    return {}


def stream_name(experience: Any) -> str:
    """The name of the (whole) experience's stream; ``stream`` for an experience that stands alone."""
    stream = stream_of(experience)
    return str(stream.name) if stream is not None else "stream"


def whole_stream(experience: Any) -> Any:
    """The stream that the (whole) experience's is, or is a slice of; ``None`` if there is none."""
    stream = stream_of(experience)
    benchmark = getattr(stream, "benchmark", None)
    return stream if benchmark is None else benchmark.streams.get(stream.name)


def stream_length(experience: Any) -> int | None:
    """Experiences in the stream that the (whole) experience's is, or is a slice of; ``None`` if it can't tell."""
    whole = whole_stream(experience)
    return len(whole) if hasattr(whole, "__len__") else None
