"""Surgery: networks with a normalisation inserted against the same networks written by hand, and every refusal."""

import copy
import itertools
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models as published
from torchvision.models.resnet import BasicBlock

from plasticity_cl.errors import UserError
from plasticity_cl.models import NORMALIZATIONS, insert_normalization, make_model, make_normalization
from plasticity_cl.models.layers import NORM_CLASSES

KERNELS = {"relu", "relu_", "leaky_relu", "leaky_relu_", "gelu", "silu", "silu_", "tanh", "tanh_", "elu", "elu_"}
"""The kernels that nonlinearities end up in, whichever way they are called."""


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inserted(model: nn.Module) -> dict[str, nn.Module]:
    """List the inserted normalisations by name, with an affine drawn at random so that no two are the same."""
    found = {name: m for name, m in model.named_modules() if "_norm_before." in name and isinstance(m, NORM_CLASSES)}
    for seed, norm in enumerate(found.values()):
        for shift, parameter in enumerate(norm.parameters()):
            parameter.data.copy_(batch(*parameter.shape, seed=2 * seed + shift).abs() + 0.5)
    return found


class NonlinearityWatch(TorchDispatchMode):
    """Counts the calls of nonlinear kernels, and those that act on the output of a normalisation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls = self.normalized = 0
        self.outputs: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, NORM_CLASSES):
                module.register_forward_hook(lambda _module, _inputs, output: self.outputs.append(output))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in KERNELS:
            self.calls += 1
            self.normalized += any(args[0].data_ptr() == output.data_ptr() for output in self.outputs)
        return func(*args, **(kwargs or {}))


def watch(model: nn.Module, x: Tensor) -> NonlinearityWatch:
    with torch.no_grad(), NonlinearityWatch(model) as seen:
        model(x)
    return seen


# Against networks written by hand


class Perceptron(nn.Module):
    """Calls its nonlinearities in every form there is, one module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(7)])
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.layers[0](x))
        x = self.act(self.layers[1](x))
        x = F.relu(self.layers[2](x), inplace=True)
        x = torch.tanh(self.layers[3](x))
        x = self.layers[4](x).relu_()
        x = F.gelu(input=self.layers[5](x), approximate="tanh")
        return self.layers[6](x)


def test_every_form_of_call_gets_its_own_normalization() -> None:
    model = Perceptron()
    result = insert_normalization(model)
    norms = inserted(result)
    assert list(norms) == [f"layer_norm_before.{name}" for name in ("act", "act_1", "relu", "tanh", "relu_1", "gelu")]
    x = batch(5, 6)
    h = x
    functions = [F.relu, F.relu, F.relu, torch.tanh, F.relu, lambda z: F.gelu(z, approximate="tanh")]
    for layer, norm, function in zip(model.layers, norms.values(), functions, strict=False):
        h = function(F.layer_norm(layer(h), (6,), norm.weight, norm.bias))
    assert torch.equal(result(x), model.layers[6](h))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        out = self.second(x)
        out = F.leaky_relu_(out, 0.2)
        out = self.third(out)
        out += x
        return self.head(self.relu(out).mean((2, 3)))


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_a_residual_network_equals_the_one_written_by_hand(kind: str) -> None:
    model = Residual()
    result = insert_normalization(model, kind)
    a, b, c = inserted(result).values()
    assert all(type(norm) is type(make_normalization(kind, 4, 2)) for norm in (a, b, c))
    image = batch(5, 2, 6, 6)
    x = F.relu(a(model.first(image)))
    out = model.third(F.leaky_relu(b(model.second(x)), 0.2)) + x
    expected = model.head(F.relu(c(out)).mean((2, 3)))
    if kind == "batch":
        for norm in (a, b, c):
            norm.reset_running_stats()
    torch.testing.assert_close(result(image), expected, rtol=0, atol=0)


def test_torchvisions_resnet18_gets_one_before_each_of_its_17_relus() -> None:
    model = published.resnet18(num_classes=7)
    result = insert_normalization(model.eval())
    norms = inserted(result)
    assert len(norms) == 17
    x = batch(2, 3, 40, 40)
    seen = watch(copy.deepcopy(result), x)
    assert (seen.calls, seen.normalized) == (17, 17)

    queue = iter(norms.values())

    def activate(z: Tensor) -> Tensor:
        norm = next(queue)
        assert isinstance(norm, nn.GroupNorm)
        return F.relu(F.group_norm(z, 1, norm.weight, norm.bias))

    h = model.maxpool(activate(model.bn1(model.conv1(x))))
    for block in itertools.chain(model.layer1, model.layer2, model.layer3, model.layer4):
        assert isinstance(block, BasicBlock)
        out = activate(block.bn1(block.conv1(h)))
        out = block.bn2(block.conv2(out))
        h = activate(out + (h if block.downsample is None else block.downsample(h)))
    torch.testing.assert_close(result(x), model.fc(model.avgpool(h).flatten(1)))


def test_our_resnet18_is_torchvisions_with_the_small_stem() -> None:
    # Here and not with the other networks, since importing torchvision takes seconds.
    ours = make_model("resnet18", (3, 32, 32), 10, normalization="batch", seed=0)
    theirs = published.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    state = ours.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    x = batch(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


# Stochastic depth (convnext) depends on the mode, but its module holds no nonlinearity.
@pytest.mark.parametrize(
    ("name", "count"), [("vit_b_16", 12), ("convnext_tiny", 18), ("squeezenet1_1", 26), ("vgg11_bn", 10)]
)
def test_published_networks_on_the_meta_device(name: str, count: int) -> None:
    with torch.device("meta"):
        model = getattr(published, name)()
    assert sum(isinstance(m, nn.ReLU | nn.GELU) for m in model.modules()) == count
    result = insert_normalization(model, "rms")
    assert len(inserted(result)) == count
    assert all(parameter.is_meta for parameter in result.parameters())


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "vit"])
def test_every_nonlinearity_of_our_networks_sees_a_normalization(name: str, kind: str) -> None:
    sizes: dict[str, Any] = {"mlp": {}, "cnn": {"width": 4}, "resnet18": {"width": 4}, "vit": {"width": 16, "depth": 2}}
    model = make_model(name, (1, 8, 8), 3, seed=0, activation="gelu", **sizes[name])
    x = batch(4, 1, 8, 8)
    calls = watch(copy.deepcopy(model), x).calls
    result = insert_normalization(model, kind, x)
    assert len(inserted(result)) == calls > 0
    seen = watch(result, x)
    assert seen.calls == seen.normalized == calls


FORMS: list[tuple[type[nn.Module], Callable[[Tensor], Tensor]]] = [
    (nn.ReLU, F.relu),
    (nn.Tanh, torch.tanh),
    (nn.GELU, F.gelu),
    (nn.SiLU, lambda z: F.silu(z, inplace=True)),
    (nn.ELU, F.elu_),
    (nn.LeakyReLU, lambda z: z.relu()),
]


class AnyPerceptron(nn.Module):
    def __init__(self, widths: list[int], acts: list[int], as_modules: list[bool]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.shared = nn.ModuleList(module() for module, _ in FORMS)
        self.acts, self.as_modules = acts, as_modules

    def forward(self, x: Tensor) -> Tensor:
        for layer, act, as_module in zip(self.layers, self.acts, self.as_modules, strict=True):
            z = layer(x)
            x = self.shared[act](z) if as_module else FORMS[act][1](z)
        return x


@given(st.data())
def test_every_nonlinearity_of_any_perceptron_sees_a_normalization(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(2, 9), min_size=2, max_size=5))
    depth = len(widths) - 1
    acts = data.draw(st.lists(st.integers(0, len(FORMS) - 1), min_size=depth, max_size=depth))
    as_modules = data.draw(st.lists(st.booleans(), min_size=depth, max_size=depth))
    kind = data.draw(st.sampled_from(NORMALIZATIONS))
    model = AnyPerceptron(widths, acts, as_modules)
    x = batch(5, widths[0])
    result = insert_normalization(model, kind)
    seen = watch(copy.deepcopy(result), x)
    assert seen.calls == seen.normalized == depth == len(inserted(result))
    again = insert_normalization(result, kind)
    assert list(again.state_dict()) == list(result.state_dict())
    assert torch.equal(again.eval()(x), result.eval()(x))


def test_preactivations_have_mean_0_and_variance_1() -> None:
    model = make_model("cnn", (3, 32, 32), 10, seed=0)
    result = insert_normalization(model)
    seen: list[Tensor] = []
    for norm in [m for m in result.modules() if isinstance(m, NORM_CLASSES)]:
        norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output.flatten(1)))
    # Far from a fresh network's inputs, as after a shift of the distribution.
    result(100 * batch(4, 3, 32, 32) + 300)
    assert len(seen) == 3
    for z in seen:
        torch.testing.assert_close(z.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(z.var(1, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


# What is left alone


class Normed(nn.Module):
    """A normalisation, perhaps something after it, and ReLU."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 32, 3), *between, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    ("between", "left_alone_by"),
    [
        ([nn.BatchNorm2d(32)], {"batch"}),
        ([nn.GroupNorm(1, 32)], {"layer", "group"}),
        ([nn.GroupNorm(2, 32)], {"group"}),
        ([nn.LayerNorm([32, 6, 6])], {"layer"}),
        ([make_normalization("rms", 32, 2)], {"rms"}),
        ([nn.InstanceNorm2d(32)], set()),
        ([nn.BatchNorm2d(32), nn.Identity()], {"batch"}),
        ([nn.BatchNorm2d(32), nn.Dropout()], set()),
        ([nn.BatchNorm2d(32), nn.MaxPool2d(2)], set()),
    ],
)
def test_only_a_normalization_of_the_same_kind_directly_before_suffices(
    between: list[nn.Module], left_alone_by: set[str]
) -> None:
    for kind in NORMALIZATIONS:
        result = insert_normalization(Normed(*between), kind)
        assert len(inserted(result)) == (kind not in left_alone_by)
        assert result(batch(3, 2, 8, 8)).shape[1] == 32


def test_a_second_kind_goes_between_and_both_stay() -> None:
    x = batch(5, 6)
    once = insert_normalization(Perceptron(), "layer")
    twice = insert_normalization(once, "rms")
    assert len(inserted(twice)) == 12
    seen = watch(copy.deepcopy(twice), x)
    assert seen.calls == seen.normalized == 6
    assert len(inserted(insert_normalization(twice, "rms"))) == 12
    # Layer normalisation is no longer directly before the nonlinearities: asking again adds it, under other names.
    thrice = inserted(insert_normalization(twice, "layer"))
    assert len(thrice) == 18
    assert {"layer_norm_before.relu", "layer_norm_before.relu_2"} <= thrice.keys()


class Overwritten(nn.Module):
    """The normalisation's output is changed in place before the nonlinearity reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.linear(x))
        z.mul_(3.0)
        return torch.relu(z)


def test_a_normalization_whose_output_was_overwritten_does_not_suffice() -> None:
    model = Overwritten()
    result = insert_normalization(model, "layer", batch(3, 4))
    (norm,) = inserted(result).values()
    x = batch(3, 4)
    torch.testing.assert_close(result(x), F.relu(norm(3 * model.norm(model.linear(x)))))


class Functional(nn.Module):
    """Holds parameters of its own and uses functions only."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.weight = nn.Parameter(batch(4, 1, 3, 3)), nn.Parameter(batch(64, 5))
        self.log_scale = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(F.conv2d(x, self.kernel, padding=1)), 2)
        h = F.layer_norm(h.flatten(1) @ self.weight, (5,))
        return F.gelu(h) * F.softplus(self.log_scale) + torch.tanh(h + 1.0)


def test_a_functional_network_with_a_nonlinear_function_of_a_parameter() -> None:
    # F.gelu follows a layer normalisation already, and softplus acts on no activation.
    model = Functional()
    result = insert_normalization(model)
    first, second = inserted(result).values()
    x = batch(3, 1, 8, 8)
    h = F.max_pool2d(F.relu(first(F.conv2d(x, model.kernel, padding=1))), 2)
    h = F.layer_norm(h.flatten(1) @ model.weight, (5,))
    expected = F.gelu(h) * F.softplus(model.log_scale) + torch.tanh(second(h + 1.0))
    torch.testing.assert_close(result(x), expected)


class Sigmoids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.a(x))
        gated = hidden * self.b(x).sigmoid()
        return torch.sigmoid(self.c(F.hardsigmoid(gated)))


def test_a_sigmoid_counts_unless_it_is_a_gate_or_the_output() -> None:
    class Chain(Sigmoids):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.b(torch.sigmoid(self.a(x)))
            return torch.sigmoid(self.c(hidden * self.a(x).sigmoid()))

    model = Chain()
    result = insert_normalization(model)
    (norm,) = inserted(result).values()
    x = batch(3, 4)
    hidden = model.b(torch.sigmoid(norm(model.a(x))))
    assert torch.equal(result(x), torch.sigmoid(model.c(hidden * model.a(x).sigmoid())))
    # Here the first is a gate as well, and the hard sigmoid of the product counts.
    assert list(inserted(insert_normalization(Sigmoids()))) == ["layer_norm_before.hardsigmoid"]


# In-place nonlinearities and what reads their input


class Discarding(nn.Module):
    """Uses in-place ReLU as a statement: later reads of its input see the result."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        before = h * 2
        self.relu(h)
        return self.b(h) + h + before


def test_later_reads_of_an_in_place_nonlinearitys_input_see_its_result() -> None:
    model = Discarding()
    result = insert_normalization(model)
    (norm,) = inserted(result).values()
    x = batch(3, 4)
    z = model.a(x)
    h = F.relu(norm(z))
    torch.testing.assert_close(result(x), model.b(h) + h + z * 2)


# Modes, buffers, sharing


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("training", [True, False])
def test_modes_work_as_in_the_network_written_by_hand(training: bool) -> None:
    model = Noisy()
    by_hand = copy.deepcopy(model)
    by_hand.layers.insert(3, nn.LayerNorm(8))
    result = insert_normalization(model).train(training)
    by_hand.train(training)
    for step in range(3):
        x = batch(6, 4, seed=step)
        torch.manual_seed(step)
        expected = by_hand(x)
        torch.manual_seed(step)
        assert torch.equal(result(x), expected)
    assert torch.equal(result.layers[1].running_var, by_hand.layers[1].running_var)
    assert (result.layers[1].num_batches_tracked == 3) == training
    # The original is another network with the same parameters.
    assert model.layers[1].num_batches_tracked == 0
    assert model.training
    assert all(a is b for a, b in zip(model.parameters(), itertools.islice(result.parameters(), 6), strict=True))


def test_mode_flags_are_taken_over_one_by_one() -> None:
    model = Noisy().train()
    model.layers[1].eval()
    result = insert_normalization(model)
    modes = {name: module.training for name, module in result.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["layers.1"]
    assert not any(module.training for module in insert_normalization(Noisy().eval()).modules())


class HandMadeDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def test_a_module_that_depends_on_the_mode_and_holds_no_nonlinearity_is_kept_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 50), HandMadeDropout(), nn.Linear(50, 50), nn.ReLU(), HandMadeDropout())
    result = insert_normalization(model)
    x = batch(3, 4)
    for training in (True, False, True):
        result.train(training)
        outputs = result(x)
        torch.manual_seed(0)
        by_hand = F.dropout(model[0](x), 0.5, training)
        by_hand = F.dropout(F.relu(F.layer_norm(model[2](by_hand), (50,))), 0.5, training)
        torch.manual_seed(0)
        assert torch.equal(result(x), by_hand)
        assert torch.equal(outputs, result(x)) == (not training)


def test_layers_chosen_by_the_mode_are_kept_together_where_no_nonlinearity_is_among_them() -> None:
    model = nn.Sequential(Switch(), nn.Linear(4, 4), nn.ReLU())
    result = insert_normalization(model)
    x = batch(3, 4)
    for training, layer in ((True, model[0].a), (False, model[0].b)):
        expected = F.relu(F.layer_norm(model[1](layer(x)), (4,)))
        assert torch.equal(result.train(training)(x), expected)


class Jittered(nn.Module):
    """Draws noise in both modes, of the shape of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x + torch.randn_like(x)))


def test_noise_of_the_shape_of_the_input_stays_random() -> None:
    model = Jittered()
    x = batch(3, 4)
    result = insert_normalization(model, "layer", x)
    torch.manual_seed(5)
    outputs = result(x)
    torch.manual_seed(5)
    noise = torch.randn_like(x)
    assert torch.equal(outputs, torch.tanh(F.layer_norm(model.linear(x + noise), (4,))))
    assert not torch.equal(result(x), outputs)


class Buffered(nn.Module):
    """Computes with buffers, and makes a tensor in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("variance", torch.full((4,), 4.0))
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return torch.relu(self.linear(x / self.variance.sqrt())) + torch.arange(4)


def test_computation_on_buffers_is_not_frozen() -> None:
    model = Buffered()
    result = insert_normalization(model)
    assert set(result.state_dict()) == {*model.state_dict(), *(k for k in result.state_dict() if "_norm_before" in k)}
    assert result.count == 0
    result.variance.fill_(25.0)
    assert model.variance[0] == 4.0
    x = batch(3, 4)
    torch.testing.assert_close(result(x), F.relu(F.layer_norm(model.linear(x / 5), (4,))) + torch.arange(4))
    assert (model.count, result.count) == (0, 1)


class PartlyUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.body = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
        self.tied = self.body[1]
        self.unused_again = self.unused
        self.free = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor, mask: Tensor | None = None, negate: bool = False) -> Tensor:
        if mask is not None:
            x = x * mask
        x = self.body(x)
        return -x if negate else x


def test_names_and_order_of_the_original_stay() -> None:
    model = PartlyUsed()
    result = insert_normalization(model)
    added = ["layer_norm_before.body_0_1.weight", "layer_norm_before.body_0_1.bias"]
    assert list(result.state_dict()) == [*model.state_dict(), *added]
    own = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in result.named_parameters()] == [*own, *added]
    assert all(result.get_parameter(name) is parameter for name, parameter in model.named_parameters())
    assert isinstance(result.body[0][1], nn.ReLU)


def test_optional_inputs_are_fixed_at_their_defaults() -> None:
    model = PartlyUsed()
    result = insert_normalization(model)
    x = batch(3, 4)
    expected = model.tied(F.relu(F.layer_norm(model.body[0][0](x), (4,))))
    for outputs in (result(x), result(x, None), result(x, mask=None, negate=False)):
        assert torch.equal(outputs, expected)
    with pytest.raises(AssertionError, match="mask has been specialized to have value None"):
        result(x, mask=torch.ones(4))
    with pytest.raises(AssertionError, match="negate has been specialized to have value False"):
        result(x, negate=True)


def test_the_original_computes_what_it_did_and_nothing_global_moves() -> None:
    model = published.resnet18(num_classes=3)
    model.layer1.eval()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = batch(2, 3, 32, 32)
    before = torch.get_rng_state(), random.getstate(), x.clone()
    insert_normalization(model, "batch", x)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.equal(x, before[2])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(state)
    assert model.conv1.weight.grad.sum() == model.conv1.weight.numel()


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_a_step_moves_every_parameter(kind: str) -> None:
    result = insert_normalization(make_model("cnn", (1, 8, 8), 3, width=4, activation="silu", seed=0), kind)
    parameters = dict(result.named_parameters())
    # A bias before a normalisation over the batch has no gradient: the mean is taken away.
    moved = {n for n in parameters if kind != "batch" or "norm" in n or "output" in n or n.endswith("weight")}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.SGD(result.parameters(), lr=0.1)
    F.cross_entropy(result(batch(12, 1, 8, 8)), torch.arange(12) % 3).backward()
    optimizer.step()
    assert {name for name in moved if torch.equal(before[name], parameters[name])} == set()
    assert sum("_norm_before" in name for name in moved) == (3 if kind == "rms" else 6)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_copies_states_and_pickles(kind: str, tmp_path: Path) -> None:
    result = insert_normalization(Residual(), kind)
    inserted(result)
    image = batch(5, 2, 6, 6)
    result(image)
    result.eval()
    expected = result(image)

    copied = copy.deepcopy(result)
    assert list(copied.state_dict()) == list(result.state_dict())
    assert torch.equal(copied(image), expected)
    copied.first.weight.data.zero_()
    assert torch.equal(result(image), expected)

    torch.save(result.state_dict(), tmp_path / "state.pt")
    fresh = insert_normalization(Residual(), kind).eval()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(image), expected)

    restored = pickle.loads(pickle.dumps(result))
    assert type(restored).__mro__[1] is type(result).__mro__[1]
    assert list(restored.state_dict()) == list(result.state_dict())
    assert torch.equal(restored(image), expected)
    assert len(inserted(insert_normalization(restored, kind))) == 3


def test_copies_keep_what_the_graph_does_not_mention() -> None:
    result = insert_normalization(PartlyUsed())
    for copied in (copy.deepcopy(result), copy.deepcopy(copy.deepcopy(result)), pickle.loads(pickle.dumps(result))):
        assert list(copied.state_dict()) == list(result.state_dict())
        assert [n for n, _ in copied.named_parameters()] == [n for n, _ in result.named_parameters()]
        x = batch(3, 4)
        assert torch.equal(copied(x, negate=False), result(x))


@pytest.mark.parametrize("wrap", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_reparametrised_layers_work(wrap: Callable[[nn.Module], nn.Module]) -> None:
    linear = wrap(nn.Linear(4, 4))
    x = batch(3, 4)
    for use_example in (False, True):
        result = insert_normalization(nn.Sequential(linear, nn.Tanh()), "layer", x if use_example else None)
        torch.testing.assert_close(result(x), torch.tanh(F.layer_norm(linear(x), (4,))))
        next(linear.parameters()).data.mul_(2.0)
        torch.testing.assert_close(result(x), torch.tanh(F.layer_norm(linear(x), (4,))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_new_parameters_have_the_dtype_of_the_networks(kind: str, dtype: torch.dtype) -> None:
    model = make_model("cnn", (1, 8, 8), 3, width=4, seed=0).to(dtype)
    result = insert_normalization(model, kind)
    assert {tensor.dtype for tensor in result.state_dict().values() if tensor.is_floating_point()} == {dtype}
    assert result(batch(2, 1, 8, 8).to(dtype)).dtype == dtype


# The number of channels


class Viewed(nn.Module):
    """Reshapes between the layer and the nonlinearity, so that the graph does not show the channels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.shape = nn.Linear(4, 24), shape

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x).reshape(-1, *self.shape))


@pytest.mark.parametrize(
    ("shape", "norm"),
    [
        ((24,), nn.LayerNorm(24)),
        ((4, 6), nn.LayerNorm(6)),
        ((6, 2, 2), nn.GroupNorm(1, 6)),
        ((3, 2, 2, 2), nn.GroupNorm(1, 3)),
    ],
)
def test_an_example_tells_the_channels(shape: tuple[int, ...], norm: nn.Module) -> None:
    model = Viewed(shape)
    with pytest.raises(UserError, match=r"operation 'relu': the number of channels .* is unknown; pass example_input"):
        insert_normalization(model)
    x = batch(1, 4)
    result = insert_normalization(model, "layer", x)
    (found,) = inserted(result).values()
    assert (type(found), found.weight.shape) == (type(norm), norm.weight.shape)
    norm.load_state_dict(found.state_dict())
    assert torch.equal(result(x), F.relu(norm(model.linear(x).reshape(-1, *shape))))


def test_channels_are_found_behind_what_keeps_them() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.side = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 1, 1)
            self.scale = nn.Parameter(torch.ones(5, 1, 1))
            self.steps = nn.Sequential(nn.GroupNorm(1, 5), nn.Dropout2d(), nn.AvgPool2d(2), nn.Identity())
            self.attention, self.project = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = 1 - self.steps(self.conv(x) * self.side(x)) * self.scale / 2
            h = F.relu(F.adaptive_avg_pool2d(h.contiguous(), 1))
            tokens = self.project(h.flatten(2).transpose(1, 2))
            mixed, _ = self.attention(tokens, tokens, tokens)
            return F.silu(tokens + mixed)

    x = batch(2, 3, 8, 8)
    results = insert_normalization(Long()), insert_normalization(Long(), "layer", x)
    for result in results:
        first, second = inserted(result).values()
        assert isinstance(first, nn.GroupNorm)
        assert isinstance(second, nn.LayerNorm)
        assert (first.num_channels, second.normalized_shape) == (5, (6,))
        assert result(x).shape == (2, 1, 6)


def test_one_channel_broadcast_against_many_is_not_taken_for_the_number() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x) + x)

    with pytest.raises(UserError, match="unknown; pass example_input"):
        insert_normalization(Outer())
    (norm,) = inserted(insert_normalization(Outer(), "layer", batch(2, 4))).values()
    assert norm.normalized_shape == (4,)


# Refusals


class Relu(nn.Module):
    """A layer and ReLU, to build what is refused from."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class Branching(Relu):
    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if x.sum() > 0:
            x = -x
        return F.relu(x)


class FunctionalDropout(Relu):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class OnlyInTraining(Relu):
    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.training:
            x = x + torch.randn_like(x)
        return F.relu(x)


class OtherWiring(Relu):
    def forward(self, x: Tensor) -> Tensor:
        one, two = F.relu(self.linear(x)), F.relu(self.linear(-x))
        return self.linear(one if self.training else two)


class Switch(nn.Module):
    """Calls one layer in training and another in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.training else self.b(x)


class SwitchThenRelu(Switch):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class FeaturesAndMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 1, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + self.linear(x))


class WithoutGradient(Relu):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.linear(x)
        return F.relu(x)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Custom(Relu):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(StraightThrough.apply(self.linear(x)))


class FrozenNoise(Relu):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x) + torch.randn(4))


class Counting(Relu):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


class Recurrent(Relu):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(self.inner(x)[0]))


class HandMadeSilu(Relu):
    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return x * torch.sigmoid(1.702 * x)


class AnotherView(Relu):
    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h.contiguous().relu_() + h


class OwnTrain(Relu):
    def train(self, mode: bool = True) -> "OwnTrain":
        return super().train(mode)


class Uncopyable(Relu):
    def __init__(self) -> None:
        super().__init__()
        self.items = (i for i in range(3))


def hooked(model: nn.Module, at: str = "") -> nn.Module:
    model.get_submodule(at).register_forward_hook(lambda *_: None)
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Branching, r"cannot trace the network \(Branching\) at 'if x.sum\(\) > 0:' .*control flow"),
        (lambda: nn.Sequential(Relu(), Branching()), r"cannot trace module '1' \(Branching\) at 'if x.sum\(\) > 0:'"),
        # The second is what torch before 2.7 says by itself.
        (
            Counting,
            r"Counting assigns to its buffer 'count' in its forward|\(Counting\) at 'self.count \+= 1'.*buffer 'count'",
        ),
        (FunctionalDropout, r"the network \(FunctionalDropout\), operation 'dropout': depends on self.training"),
        (
            lambda: nn.Sequential(FunctionalDropout()),
            r"module '0' \(FunctionalDropout\), operation 'dropout': depends on",
        ),
        (OnlyInTraining, r"the network \(OnlyInTraining\), operation 'randn_like': depends on self.training"),
        (lambda: nn.Sequential(OnlyInTraining()), r"module '0' \(OnlyInTraining\), operation 'randn_like': depends on"),
        (SwitchThenRelu, r"module 'a' \(Linear\): depends on self.training"),
        (FeaturesAndMaps, "operation 'relu': the number of channels of its input is unknown"),
        (OtherWiring, "OtherWiring: which results it uses depends on self.training"),
        (lambda: Recurrent(nn.LSTM(4, 4)), r"module 'inner' \(LSTM\) has nonlinearities inside"),
        (lambda: Recurrent(nn.GRUCell(4, 4)), r"module 'inner' \(GRUCell\) has nonlinearities inside"),
        (lambda: Recurrent(nn.TransformerEncoderLayer(4, 2)), r"module 'inner' \(TransformerEncoderLayer\) has nonlin"),
        (
            lambda: Recurrent(torch.jit.script(nn.ReLU())),
            r"module 'inner' \(\w*ScriptModule\) has nonlinearities inside",
        ),
        (WithoutGradient, r"module 'linear' \(Linear\): 'linear' runs without gradients"),
        (
            Custom,
            r"the network \(Custom\): 'sign' runs without gradients \(torch.no_grad or a torch.autograd.Function\)",
        ),
        (FrozenNoise, r"FrozenNoise draws a random tensor of fixed shape in its forward \(for add\)"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), "no nonlinearity found in Sequential"),
        (HandMadeSilu, r"the network \(HandMadeSilu\), operation 'sigmoid': x \* sigmoid\(x\) is SiLU written by hand"),
        (AnotherView, "operation 'relu': overwrites a tensor that 'add' reads later through another view"),
        (lambda: Relu(1), r"the network \(Relu\), operation 'relu': 'layer' normalisation over a single unit erases"),
        (OwnTrain, r"OwnTrain has a train\(\) or eval\(\) of its own"),
        (lambda: hooked(Relu()), "Relu has forward hooks, .*; remove them first"),
        (lambda: hooked(nn.Sequential(Relu()), "0"), r"module '0' \(Relu\) has forward hooks"),
        (lambda: nn.Sequential(nn.LazyLinear(3), nn.ReLU()), "parameter '0.weight' of Sequential has no shape yet"),
        (Uncopyable, "Uncopyable cannot be copied: cannot pickle 'generator' object"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(build: Callable[[], nn.Module], message: str) -> None:
    model = build()
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=message) as caught:
        insert_normalization(model)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_kind_is_answered_with_the_close_ones() -> None:
    with pytest.raises(UserError, match="unknown normalization 'layernorm'; did you mean layer"):
        insert_normalization(Relu(), "layernorm")


class OwnLinear(nn.Linear):
    """A layer that only changes how it is made."""


@pytest.mark.parametrize("linear", [nn.Linear, OwnLinear])
def test_layers_are_still_called_as_modules_so_that_hooks_see_them(linear: type[nn.Linear]) -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(linear(4, 4), nn.ReLU(), linear(4, 2))
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    result = insert_normalization(model)
    x = batch(3, 4)
    result(x)
    assert len(seen) == 1
    assert torch.equal(seen[0], model[0].forward(x))


class Aliased(Relu):
    """torch.fx takes ``h += 1`` for a new tensor, while here it changes ``kept`` as well."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        kept = h
        h += 1
        return F.relu(h) + kept


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (Aliased(), batch(2, 4), "Aliased computes something else than its trace"),
        (Relu(), batch(2, 5), r"Relu does not run on example_input of shape \(2, 5\): mat1 and mat2"),
        (
            Normed(),
            batch(2, 8, 8),
            r"module 'body.1' \(ReLU\): its input has shape \(32, 6, 6\).* is example_input a batch",
        ),
        (Relu(), batch(4), r"its input has shape \(4,\), but \[..., channels\] with 4 channels was expected"),
        (Viewed((6, 2, 2, 1, 1)), batch(2, 4), r"no channel dimension in its input of shape \(2, 6, 2, 2, 1, 1\)"),
    ],
)
def test_an_example_that_shows_a_contradiction_is_refused(model: nn.Module, example: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        insert_normalization(model, "layer", example)
    assert "\n" not in str(caught.value)
