"""The README's example runs as it stands there, in an Avalanche script that knows nothing else of the project."""

import gc
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from plasticity_cl.scenarios import ClassIncremental, load_source

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_tells_forgetting_from_plasticity_loss(tmp_path, monkeypatch, capsys):
    def make_network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {"make_network": make_network, "benchmark": ClassIncremental(load_source("digits"))}
    exec(compile(example, "README.md", "exec"), names)
    separation = names["separation"]
    assert separation.plasticity_loss[0] == 0
    assert np.isfinite(separation.total).all()
    assert separation.forgetting[:-1].mean() > 0.3
    assert "[" in capsys.readouterr().out
    assert list((tmp_path / "tb").iterdir())
    names.clear()
    gc.collect()  # the writer of TensorBoard's events closes its file where it made it


def test_the_commands_of_the_readme_are_those_of_the_makefile():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
