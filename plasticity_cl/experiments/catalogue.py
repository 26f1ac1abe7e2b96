"""Every executor by name: who does the runs of a comparison, and how many at a time. Light to import.

A new one is a file and a line here: an :class:`~plasticity_cl.experiments.plan.Executor`.
"""

from __future__ import annotations

from plasticity_cl.parts import Catalogue, Entry

_HERE = "plasticity_cl.experiments"

EXECUTORS = Catalogue(
    "executor",
    "executors",
    {
        "processes": Entry(f"{_HERE}.processes:Processes", "several runs at a time, each in a process of its own"),
        "in-turn": Entry(f"{_HERE}.in_turn:InTurn", "one run after the other, in this process"),
    },
    given=("n_workers",),
)
