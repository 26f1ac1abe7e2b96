"""Private names of Avalanche's stand in one file, so that another version of it is met in one place."""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import avalanche
import pytest
import torch
from avalanche.training import EWC, JointTraining, LwF, Naive, Replay
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from torch import nn

import plasticity_cl
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.training import Samples, SupervisedTemplate, avalanche_names
from plasticity_cl.training.learner import Learner, criterion_of, probe_samples, set_criterion

ROOT = Path(plasticity_cl.__file__).parent.parent
OURS = sorted(
    path
    for folder in ("plasticity_cl", "scenarios", "strategies", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if not path.is_relative_to(ROOT / "plasticity_cl" / "scenarios")
    and not path.is_relative_to(ROOT / "plasticity_cl" / "strategies")
)
HOME = Path(avalanche_names.__file__)
# Hooks that Avalanche's template calls, and that ours overrides or asks whether a subclass has overridden them.
TEMPLATE_HOOKS = {"_before_training_exp", "_make_empty_loss", "_unpack_minibatch"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_self(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def private_names_of_classes(tree: ast.AST) -> set[str]:
    """What the classes in a file call their own: methods, and attributes that they set."""
    names = set()
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(kind):
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                names.add(node.attr)
    return {name for name in names if is_private(name)}


@functools.cache
def avalanches() -> frozenset[str]:
    files = Path(avalanche.__file__).parent.rglob("*.py")
    return frozenset().union(*(private_names_of_classes(ast.parse(path.read_text())) for path in files))


def used_of_others(tree: ast.AST) -> set[str]:
    """Private names that are read or set of anything but ``self``, also by their name in a string."""
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and not is_self(n.value)}
    names |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {name for name in names if is_private(name)}


def test_what_this_test_looks_for_is_what_avalanche_has():
    assert {"_criterion", "_origin_stream", "_experiences", "_flat_data", "_mean_accuracy"} <= avalanches()
    assert used_of_others(ast.parse(HOME.read_text())) >= {"_criterion", "_origin_stream", "_flat_data", "_active"}
    seen = used_of_others(
        ast.parse("x = strategy._criterion\ngetattr(a, '_flat_data')\nself._loss = 1\na.b()._data = 2")
    )
    assert seen == {"_criterion", "_flat_data", "_data"}


@pytest.mark.parametrize("path", [path for path in OURS if path != HOME], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_private_name_of_avalanches_is_used_in_one_file_alone(path):
    used = used_of_others(ast.parse(path.read_text())) & avalanches()
    allowed = TEMPLATE_HOOKS if path.name == "template.py" else set()
    assert used <= allowed, f"go through {HOME.name} for {sorted(used - allowed)}"


def subclasses_of_avalanche() -> list[type]:
    kinds = []
    for path in (path for path in OURS if path.parts[len(ROOT.parts)] != "scripts" and path.name != "__main__.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name if name.startswith("plasticity_cl") else f"plasticity_cl.{name}")
        for kind in (part for part in vars(module).values() if inspect.isclass(part)):
            if kind.__module__ == module.__name__ and any(b.__module__.startswith("avalanche.") for b in kind.__mro__):
                kinds.append(kind)
    return kinds


@pytest.mark.parametrize("kind", subclasses_of_avalanche(), ids=lambda kind: kind.__name__)
def test_what_our_subclasses_use_of_their_own_is_theirs(kind):
    bases = [base for base in kind.__mro__ if base.__module__.startswith("avalanche.")]
    inherited = set().union(*(private_names_of_classes(ast.parse(inspect.getsource(base))) for base in bases))
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind)))
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and is_self(n.value)}
    overridden = {name for base in kind.__mro__ if base.__module__.startswith("plasticity_cl.") for name in vars(base)}
    assert used & inherited <= TEMPLATE_HOOKS | overridden


class Asks(SupervisedPlugin):
    """Looks for everything that plugins may ask of a learner, at a step of training and of evaluation."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def look(self, strategy):
        assert all(hasattr(strategy, name) for name in LEARNER)
        loss = criterion_of(strategy)(strategy.mb_output, strategy.mb_y)
        assert torch.equal(loss, strategy.criterion())
        samples = probe_samples(strategy, 5)
        assert samples.inputs.shape == (5, 6)
        assert samples.targets.shape == samples.task_labels.shape == (5,)
        self.seen += 1

    def after_forward(self, strategy, **_):
        self.look(strategy)

    def after_eval_forward(self, strategy, **_):
        self.look(strategy)


LEARNER = (*Learner.__annotations__, "mb_x", "mb_y", "criterion")


@pytest.mark.parametrize("kind", [Naive, EWC, Replay, LwF, JointTraining, AvalancheTemplate, SupervisedTemplate])
def test_any_strategy_is_a_learner(kind):
    def samples(k):
        return Samples(torch.randn(12, 6), torch.randint(3, (12,)))

    stream = InMemoryScenario("tiny", 1, samples, samples, input_shape=(6,), n_outputs=3).train_stream
    model, asks = nn.Linear(6, 3), Asks()
    more = {EWC: {"ewc_lambda": 1.0}, LwF: {"alpha": 1.0, "temperature": 2.0}}.get(kind, {})
    options = {"criterion": nn.CrossEntropyLoss(), "train_mb_size": 4, "eval_mb_size": 4, "evaluator": None, **more}
    strategy = kind(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), plugins=[asks], **options)
    if kind is not LwF:
        strategy.train(stream, eval_streams=[])
    strategy.eval(stream)
    assert asks.seen == (3 if kind is LwF else 6)
    replacement = nn.CrossEntropyLoss(label_smoothing=0.1)
    set_criterion(strategy, replacement)
    assert criterion_of(strategy) is replacement
