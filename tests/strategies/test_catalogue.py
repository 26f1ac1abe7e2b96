"""The catalogue: one spelling for every combination, the right plugins for it, and an answer to every mistake."""

import math
import subprocess
import sys

import pytest
import torch
from avalanche.training.plugins import EWCPlugin, ReplayPlugin
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import generator
from plasticity_cl.strategies import (
    COMPONENTS,
    Finetune,
    L2Plugin,
    LayerNormPlugin,
    LwFPlugin,
    OptimizerResetPlugin,
    ScaleInvariantLossPlugin,
    WeightDecayPlugin,
    fresh_name,
    make_plugins,
    normalise,
    parse,
)
from plasticity_cl.strategies.catalogue import acts_on_first_experience
from plasticity_cl.training import Samples

RANGES = st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def combinations(draw) -> list[str]:
    """The spelt components of a combination that is right, in any order, with and without values."""
    parts, excluded = [], set()
    for name in draw(st.lists(st.sampled_from(sorted(COMPONENTS)), unique=True, min_size=1)):
        path, first = COMPONENTS[name].path, next(iter(COMPONENTS.options(name).values()), None)
        if path in excluded:
            continue
        excluded.add(path)
        if first is None or draw(st.booleans()):
            parts.append(name)
        elif first.default is not None:
            value = draw(st.integers(1, 10**6) if name == "replay" else st.floats(0, 1e30))
            parts.append(f"{name}={draw(st.sampled_from(['{!r}', '{:.17e}', '{:.17E}'])).format(value)}")
        else:
            parts.append("{}={!r}..{!r}".format(name, *draw(RANGES)))
    return parts


@given(combinations(), st.randoms(use_true_random=False))
def test_equal_combinations_have_one_canonical_name_that_says_everything(parts, random):
    text = "+".join(parts)
    name = normalise(text)
    random.shuffle(parts)
    assert normalise(" + ".join(part.upper() for part in parts)) == name
    assert normalise(name) == name
    assert parse(name) == parse(text)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.+=-")
    assert [component.name for component in parse(text)] == [key for key in COMPONENTS if key in name_parts(name)]


@given(st.floats(0, allow_infinity=False, allow_nan=False), st.floats(allow_infinity=False, allow_nan=False))
@example(5e-324, -1.7976931348623157e308)
@example(1e5, 1e-5)
@example(1e16, 123456789012345680.0)
def test_a_spelling_reads_back_as_the_same_number_and_no_other_is_spelt_so(strength, low):
    (l2,) = parse(f"l2={strength!r}")
    assert parse(str(l2)) == (l2,)
    assert l2.options == {"strength": strength}
    high = math.nextafter(low, math.inf)
    if math.isfinite(high):
        (loss,) = parse(f"hl-gauss={low!r}..{high!r}")
        assert parse(str(loss)) == (loss,)
        assert loss.options == {"between": (low, high)}
    assert len(str(l2)) <= len(f"l2={strength!r}"), "no longer than Python's own"
    assert not set(str(l2)) & set("+ /\\:")


def name_parts(name: str) -> set[str]:
    return {part.partition("=")[0] for part in name.split("+")}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("finetune", "finetune"),
        (" Finetune ", "finetune"),
        ("l2 + layernorm", "layernorm+l2=0.001"),
        ("l2=1e-5", "l2=1e-5"),
        ("ewc=1e+3+L2=0.10", "l2=0.1+ewc=1000"),
        ("ewc=1e+20", "ewc=1e20"),
        ("ewc=1000000000", "ewc=1e9"),
        ("ewc=0.00001234", "ewc=1.234e-5"),
        ("ewc=10000", "ewc=10000"),
        ("ewc=1e4", "ewc=10000"),
        ("ewc=99999.5", "ewc=99999.5"),
        ("ewc=100000", "ewc=1e5"),
        ("ewc=1.5e5", "ewc=1.5e5"),
        ("ewc=123456", "ewc=123456"),
        ("l2=1e-4", "l2=0.0001"),
        ("l2=1.0", "l2=1"),
        ("replay=1e6", "replay=1e6"),
        ("hl-gauss=-1e6..2500000", "hl-gauss=-1e6..2.5e6"),
        ("ewc=1.e+3", "ewc=1000"),
        ("replay=2e2+batchnorm", "batchnorm+replay=200"),
        ("lwf+optimizer-reset", "lwf=1+optimizer-reset"),
        ("weight-decay=-0", "weight-decay=0"),
        ("layernorm+scale-invariant", "layernorm+scale-invariant"),
        ("hl-gauss=-10..1.1e2", "hl-gauss=-10..110"),
    ],
)
def test_canonical_spelling(text, canonical):
    assert normalise(text) == canonical


def test_components_are_typed_and_in_canonical_order():
    assert [(chosen.name, chosen.options) for chosen in parse("l2+scale-invariant=-1..1+layernorm")] == [
        ("layernorm", {}),
        ("scale-invariant", {"between": (-1.0, 1.0)}),
        ("l2", {"strength": 1e-3}),
    ]
    assert parse("finetune") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layernrom", "unknown strategy 'layernrom'; did you mean layernorm"),
        ("l2+ewv=3", "unknown strategy 'ewv'; did you mean ewc"),
        ("fintune", "did you mean finetune"),
        ("xyz", "known: batchnorm, ewc, finetune"),
        ("l2=abc", "bad value in strategy l2: strength is abc: it must be a number of 0 or more"),
        ("l2=-1", "strength is -1: it must be a number of 0 or more"),
        ("l2=nan", "must be a number of 0 or more"),
        ("l2=1e999", "must be a number of 0 or more"),
        ("l2=", "must be a number of 0 or more"),
        ("l2=1=2", "must be a number of 0 or more"),
        ("replay=0", "whole number of 1 or more"),
        ("replay=1.5", "whole number of 1 or more"),
        ("scale-invariant=5", r"LOW\.\.HIGH"),
        ("scale-invariant=5..5", r"LOW\.\.HIGH"),
        ("scale-invariant=two-hot", r"LOW\.\.HIGH"),
        ("layernorm=3", "layernorm takes no value"),
        ("layernorm=", "layernorm takes no value"),
        ("l2+layernorm+l2=1", "names l2 twice"),
        ("rmsnorm+layernorm", "both rmsnorm and layernorm; choose one"),
        ("hl-gauss+scale-invariant", "both hl-gauss and scale-invariant"),
        ("finetune+l2", "finetune stands for no component at all"),
        ("finetune=1", "finetune stands for no component at all"),
        ("", "empty component"),
        ("l2++ewc", "empty component"),
        ("+l2", "empty component"),
    ],
)
def test_mistakes_are_answered_in_one_line(text, message):
    for function in (parse, normalise, fresh_name, make_plugins):
        with pytest.raises(UserError, match=message) as caught:
            function(text)
        assert "\n" not in str(caught.value)


def test_plugins_get_the_values_that_were_written():
    norm, loss, l2, decay, ewc, replay, lwf, reset = make_plugins(
        "optimizer-reset+lwf=0.5+replay=7+ewc=3+weight-decay=0.2+l2=0.3+hl-gauss=-2..5+groupnorm", seed=11
    )
    assert isinstance(norm, LayerNormPlugin)
    assert norm.kind == "group"
    assert isinstance(loss, ScaleInvariantLossPlugin)
    assert (loss.loss, loss.low, loss.high, loss.scale, loss.seed) == ("hl-gauss", -2.0, 5.0, "linear", 11)
    assert isinstance(l2, L2Plugin)
    assert l2.strength == 0.3
    assert isinstance(decay, WeightDecayPlugin)
    assert decay.strength == 0.2
    assert isinstance(ewc, EWCPlugin)
    assert (ewc.ewc_lambda, ewc.mode, ewc.decay_factor) == (3.0, "online", 1.0)
    assert isinstance(replay, ReplayPlugin)
    assert replay.mem_size == 7
    assert isinstance(lwf, LwFPlugin)
    assert lwf.lwf.alpha == 0.5
    assert isinstance(reset, OptimizerResetPlugin)
    assert make_plugins("finetune") == []


def test_without_a_range_the_scale_invariant_loss_spans_targets_of_unknown_size():
    (plugin,) = make_plugins("scale-invariant")
    assert isinstance(plugin, ScaleInvariantLossPlugin)
    assert (plugin.loss, plugin.low, plugin.high, plugin.scale) == ("two-hot", -1e3, 1e3, "symlog")


@pytest.mark.parametrize(
    ("text", "fresh"),
    [
        ("ewc=100", "finetune"),
        ("replay+lwf+optimizer-reset", "finetune"),
        ("ewc=100+layernorm", "layernorm"),
        ("l2+replay=5+layernorm", "layernorm+l2=0.001"),
        ("scale-invariant=0..1+weight-decay", "scale-invariant=0..1+weight-decay=0.01"),
        ("finetune", "finetune"),
    ],
)
def test_the_fresh_name_leaves_out_what_needs_a_past(text, fresh):
    assert fresh_name(text) == fresh


def weights_after(text: str, n_experiences: int) -> list[Tensor]:
    """Weights of a classifier, or of a regression where the combination is one, under the same seeds for all."""
    is_regression = name_parts(text) & {"scale-invariant", "hl-gauss"}

    def samples(k: int) -> Samples:
        inputs = torch.randn(24, 6, generator=generator("inputs", k))
        labels = torch.randint(3, (24,), generator=generator("labels", k))
        return Samples(inputs, labels[:, None].float() if is_regression else labels)

    scenario = InMemoryScenario("tiny", n_experiences, samples, samples, input_shape=(6,), n_outputs=3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1 if is_regression else 3))
    strategy = Finetune(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-2),
        train_mb_size=8,
        train_epochs=3,
        plugins=make_plugins(text),
        evaluator=None,
    )
    for experience in scenario.train_stream:
        strategy.train([experience], eval_streams=[])
    return [parameter.detach() for parameter in strategy.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", COMPONENTS)
def test_what_acts_on_the_first_experience_is_told_apart_bit_for_bit(name):
    acts = acts_on_first_experience(name)
    assert same(weights_after(name, 1), weights_after("finetune", 1)) is not acts
    assert not same(weights_after(name, 3), weights_after("finetune", 3)), "every component does something"


def test_first_experiences_are_alike_in_company_too():
    assert same(weights_after("layernorm+l2+ewc=100+replay=6+lwf", 1), weights_after("layernorm+l2", 1))


def test_names_and_mistakes_are_told_without_torch_and_avalanche():
    program = (
        "import sys, plasticity_cl.strategies.catalogue as c, plasticity_cl.strategies as s\n"
        "assert c.normalise('l2+ewc') == 'l2=0.001+ewc=100' and s.parse is c.parse and 'LayerNorm' in dir(s)\n"
        "sys.exit(', '.join({'torch', 'avalanche', 'numpy'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
