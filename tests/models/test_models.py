"""Networks by name: what they compute, how they are initialised, and what they refuse."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from plasticity_cl.errors import UserError
from plasticity_cl.models import (
    ACTIVATIONS,
    NORMALIZATIONS,
    insert_normalization,
    make_activation,
    make_model,
    make_normalization,
)
from plasticity_cl.models.layers import NORM_CLASSES, normalization_kinds
from plasticity_cl.models.resnet import BasicBlock
from plasticity_cl.models.vit import Attention, patch_side, position_code

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "depth": 2},
    "cnn": {"width": 4, "depth": 2},
    "resnet18": {"width": 4, "depth": 1},
    "vit": {"width": 16, "depth": 2},
}
IMAGES = [(1, 8, 8), (3, 32, 32)]


def small_model(name: str, shape: tuple[int, ...] = (1, 8, 8), **options: Any) -> nn.Module:
    return make_model(name, shape, 3, **{**SMALL[name], "seed": 0, **options})


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, NORM_CLASSES)]


def batch(shape: tuple[int, ...], n: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("name", SMALL)
def test_the_last_layer_to_run_is_a_linear_whose_output_is_the_networks(name: str, shape: tuple[int, ...]) -> None:
    model = small_model(name, shape)
    ran: list[tuple[nn.Module, Tensor]] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, _, output: ran.append((m, output)))
    outputs = model(batch(shape))
    last, last_output = ran[-1]
    assert outputs.shape == (6, 3)
    assert isinstance(last, nn.Linear)
    assert torch.equal(last_output, outputs)


@pytest.mark.parametrize(
    ("name", "n_layers", "width"), [("mlp", 4, 128), ("cnn", 4, 128), ("resnet18", 21, 512), ("vit", 18, 64)]
)
def test_default_sizes(name: str, n_layers: int, width: int) -> None:
    # ResNet-18 has 17 convolutions, 3 more in shortcuts and a Linear; each ViT block has 4 Linear layers.
    model = make_model(name, (3, 32, 32), 10, seed=0)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert len(layers) == n_layers
    assert layers[-1].weight.shape == (10, width)


@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(name: str, normalization: str | None) -> None:
    torch.manual_seed(1)
    one = small_model(name, normalization=normalization).state_dict()
    torch.manual_seed(2)
    two = small_model(name, normalization=normalization).state_dict()
    other = small_model(name, normalization=normalization, seed=1).state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    weights = [key for key in one if one[key].ndim >= 2]
    assert weights
    assert not any(torch.equal(one[key], other[key]) for key in weights)


def test_numpy_seeds_are_seeds_like_others() -> None:
    one, two = small_model("mlp", seed=7).state_dict(), small_model("mlp", seed=np.int64(7)).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", SMALL)
def test_the_global_generators_stay_as_they_were(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    small_model(name)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_the_global_generators_stay_as_they_were_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(UserError):
        make_model("mlp", (4,), 2, activation="rleu", seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "vit"])
def test_networks_that_differ_in_normalization_start_from_the_same_weights(name: str, normalization: str) -> None:
    def drawn(model: nn.Module) -> list[Tensor]:
        return [p for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()]

    plain, normalized = drawn(small_model(name)), drawn(small_model(name, normalization=normalization))
    assert len(plain) == len(normalized)
    assert all(torch.equal(one, two) for one, two in zip(plain, normalized, strict=True))


@pytest.mark.parametrize("normalization", [None, *NORMALIZATIONS])
@pytest.mark.parametrize("name", SMALL)
def test_normalization_is_before_every_nonlinearity(name: str, normalization: str | None) -> None:
    model = small_model(name, normalization=normalization)
    inserted = len(norms(insert_normalization(model, normalization or "layer"))) - len(norms(model))
    n_nonlinearities = {"mlp": 2, "cnn": 3, "resnet18": 1 + 2 * 4, "vit": 2}[name]
    # In ResNet the sums of the four blocks are not normalised, as is standard.
    expected = n_nonlinearities if normalization is None else 4 if name == "resnet18" else 0
    assert inserted == expected
    vits_own = 2 * 2 + 1 if name == "vit" else 0
    if normalization is None:
        assert len(norms(model)) == vits_own
    else:
        of_kind = [norm for norm in norms(model) if normalization in normalization_kinds(norm)]
        n_layers = {"mlp": 2, "cnn": 3, "resnet18": 1 + 2 * 4 + 3, "vit": 2}[name]
        assert len(of_kind) == n_layers + (vits_own if normalization == "layer" else 0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_the_formula(activation: str) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
        "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
        "tanh": torch.tanh,
        "silu": lambda z: z * torch.sigmoid(z),
    }
    model = make_model("mlp", (2, 3, 3), 4, activation=activation, width=5, depth=3, normalization="layer", seed=3)
    x = batch((2, 3, 3))
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == [(5, 18), (5, 5), (5, 5), (4, 5)]
    h = x.reshape(6, 18)
    for layer in linears[:-1]:
        h = functions[activation](F.layer_norm(h @ layer.weight.T + layer.bias, (5,)))
    torch.testing.assert_close(model(x), h @ linears[-1].weight.T + linears[-1].bias)


def test_cnn_is_the_formula() -> None:
    model = make_model("cnn", (2, 9, 11), 3, width=4, depth=2, normalization="layer", activation="tanh", seed=3)
    x = batch((2, 9, 11))
    first, second, hidden, output = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    h = x
    for conv in (first, second):
        z = F.conv2d(h, conv.weight, conv.bias, padding=1)
        mean, variance = z.mean((1, 2, 3), keepdim=True), z.var((1, 2, 3), unbiased=False, keepdim=True)
        h = F.max_pool2d(torch.tanh((z - mean) / torch.sqrt(variance + 1e-5)), 2)
    h = torch.tanh(F.layer_norm(hidden(h.flatten(1)), (16,)))
    torch.testing.assert_close(model(x), output(h))


@given(height=st.integers(1, 20), width=st.integers(1, 20), depth=st.integers(1, 4))
def test_cnn_takes_an_image_if_and_only_if_each_stage_can_halve_it(height: int, width: int, depth: int) -> None:
    def make() -> nn.Module:
        return make_model("cnn", (1, height, width), 2, width=2, depth=depth, seed=0)

    if min(height, width) >= 2**depth:
        assert make()(torch.ones(2, 1, height, width)).shape == (2, 2)
    else:
        with pytest.raises(
            UserError, match=rf"at least {2**depth} x {2**depth}, got {height} x {width}; use a smaller"
        ):
            make()


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_resnet_without_normalization_keeps_its_scale_at_any_depth(depth: int) -> None:
    # Unscaled residual branches would let the variance grow by about 2 a block, that is 2^24 at depth 6.
    model = make_model("resnet18", (3, 16, 16), 3, width=16, depth=depth, seed=0)
    assert not norms(model)
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    assert len(blocks) == 4 * depth
    seen: list[float] = []
    for block in blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(output.std().item() / inputs[0].std().item()))
    model(batch((3, 16, 16), n=32))
    assert 0.1 < math.prod(seen) < 10


def test_attention_is_torchs_multi_head_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(48)
    oracle = nn.MultiheadAttention(48, 3, batch_first=True)
    oracle.in_proj_weight.data = attention.queries_keys_values.weight.data
    oracle.in_proj_bias.data = attention.queries_keys_values.bias.data
    oracle.out_proj.weight.data = attention.projection.weight.data
    oracle.out_proj.bias.data = attention.projection.bias.data
    tokens = batch((7, 48))
    torch.testing.assert_close(attention(tokens), oracle(tokens, tokens, tokens)[0])


def test_vit_is_the_formula_and_knows_where_a_patch_is() -> None:
    model = small_model("vit", (1, 8, 8), activation="gelu")
    x = batch((1, 8, 8))
    patches = x.reshape(6, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(6, 16, 4)
    tokens = patches @ model.patches.weight.reshape(16, 4).T + model.patches.bias + position_code(4, 4, 16)
    for block in model.blocks:
        tokens = tokens + block.attention[1](F.layer_norm(tokens, (16,)))
        first, second = (m for m in block.mlp if isinstance(m, nn.Linear))
        tokens = tokens + second(F.gelu(first(F.layer_norm(tokens, (16,)))))
    torch.testing.assert_close(model(x), model.output(F.layer_norm(tokens, (16,)).mean(1)))
    assert not torch.allclose(model(x), model(x.flip(3)), atol=1e-4)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), quarter=st.integers(4, 16))
def test_position_codes_are_distinct_and_of_equal_norm(rows: int, columns: int, quarter: int) -> None:
    code = position_code(rows, columns, 4 * quarter)
    assert code.shape == (rows * columns, 4 * quarter)
    torch.testing.assert_close(code.square().sum(1), torch.full((rows * columns,), 2.0 * quarter))
    distances = torch.cdist(code, code) + 10 * torch.eye(rows * columns)
    assert distances.min() > 0.1


@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_patches_divide_the_image_and_there_are_as_many_along_a_side_as_pixels_along_a_patch(
    height: int, width: int
) -> None:
    side = patch_side(height, width)
    assert height % side == width % side == 0
    assert side**2 <= min(height, width)
    larger = range(side + 1, math.isqrt(min(height, width)) + 1)
    assert not any(height % other == width % other == 0 for other in larger)


@pytest.mark.parametrize("name", SMALL)
def test_a_step_moves_every_parameter(name: str) -> None:
    model = small_model(name, normalization="layer", activation="silu", width=16)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(batch((1, 8, 8), n=12)), torch.arange(12) % 3).backward()
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("normalization", [None, "layer", "rms"])
@pytest.mark.parametrize("name", SMALL)
def test_hessian_vector_products_agree_with_differences_of_gradients(name: str, normalization: str | None) -> None:
    model = small_model(name, normalization=normalization, activation="tanh").double()
    x, y = batch((1, 8, 8)).double(), torch.arange(6) % 3
    parameters = list(model.parameters())
    direction = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double() for i, p in enumerate(parameters)
    ]

    def gradient(create_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=create_graph)

    slope = sum((g * v).sum() for g, v in zip(gradient(True), direction, strict=True))
    product = torch.cat([h.flatten() for h in torch.autograd.grad(slope, parameters)])
    step = 1e-5
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p += sign * step * v
        sides.append(torch.cat([g.flatten() for g in gradient(False)]))
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p -= sign * step * v
    difference = (sides[0] - sides[1]) / (2 * step)
    assert (product - difference).norm() < 1e-5 * product.norm()


# Layers


def normalized_by_hand(kind: str, x: Tensor, spatial_dims: int) -> Tensor:
    """Normalise x [N, T, C] or [N, C, *space] from the definitions, in groups of 16 channels."""
    channel_dim = 1 if spatial_dims else x.ndim - 1
    space = list(range(2, x.ndim)) if spatial_dims else []
    if kind == "batch":
        dims = [d for d in range(x.ndim) if d != channel_dim]
    elif kind == "group":
        groups = x.unflatten(channel_dim, (-1, 16))
        dims = [channel_dim + 1, *[d + 1 for d in space]]
        centred = groups - groups.mean(dims, keepdim=True)
        variance = centred.square().mean(dims, keepdim=True)
        return (centred / torch.sqrt(variance + 1e-5)).flatten(channel_dim, channel_dim + 1)
    else:
        dims = [channel_dim, *space]
    centred = x if kind == "rms" else x - x.mean(dims, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dims, keepdim=True) + 1e-5)


@pytest.mark.parametrize("spatial_dims", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_normalizations_are_their_definitions(kind: str, spatial_dims: int) -> None:
    shape = (5, 32, *[3] * spatial_dims) if spatial_dims else (5, 4, 32)
    x = 3 + 2 * batch(shape[1:], n=5).double()
    norm = make_normalization(kind, 32, spatial_dims).double()
    expected = normalized_by_hand(kind, x, spatial_dims)
    torch.testing.assert_close(norm(x), expected)
    # The affine is one scale (and shift) per channel, in the dimension of the channels.
    scale = torch.rand(32, generator=torch.Generator().manual_seed(0)).double()
    norm.weight.data = scale
    per_channel = scale.reshape(-1, *[1] * spatial_dims)
    torch.testing.assert_close(norm(x), expected * per_channel)


@given(n=st.integers(2, 6), channels=st.integers(2, 40), scale=st.floats(0.1, 100), shift=st.floats(-100, 100))
def test_layer_norm_forgets_scale_and_shift_of_its_input(n: int, channels: int, scale: float, shift: float) -> None:
    x = batch((channels, 3, 3), n=n).double()
    for module, z in (
        (make_normalization("layer", channels), x[:, :, 0, 0]),
        (make_normalization("layer", channels, 2), x),
    ):
        y = module.double()(scale * z + shift)
        variance = (scale * z).flatten(1).var(1, unbiased=False)
        assert y.flatten(1).mean(1).abs().max() < 1e-9
        torch.testing.assert_close(y.flatten(1).var(1, unbiased=False), variance / (variance + 1e-5))


@given(channels=st.integers(2, 600))
def test_groups_divide_the_channels_and_are_never_of_few(channels: int) -> None:
    for norm in (make_normalization("group", channels), make_normalization("group", channels, 2)):
        assert isinstance(norm, nn.GroupNorm)
        assert channels % norm.num_groups == 0
        assert norm.num_groups == 1 or channels // norm.num_groups >= 16
        assert norm.num_groups <= 32
    if channels in (32, 64, 512):
        assert norm.num_groups == channels // 16


def test_batch_normalization_of_tokens_updates_its_statistics_over_all_of_them() -> None:
    norm = make_normalization("batch", 4)
    x = batch((5, 4))
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 1)))
    torch.testing.assert_close(norm.eval()(x), (x - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_model("mpl", (4,), 2, seed=0), "unknown network 'mpl'; did you mean mlp?"),
        (lambda: make_model("resnet", (3, 32, 32), 2, seed=0), "unknown network 'resnet'; did you mean resnet18?"),
        (lambda: make_model("mlp", (4,), 2, activation="rleu", seed=0), "unknown activation 'rleu'; did you mean relu"),
        (
            lambda: make_model("mlp", (4,), 2, normalization="layr", seed=0),
            "unknown normalization 'layr'; did you mean",
        ),
        (lambda: make_activation("swish"), "unknown activation 'swish'; known: gelu, leaky_relu, relu, silu, tanh"),
        (lambda: make_normalization("lyaer", 4), "unknown normalization 'lyaer'; did you mean layer?"),
        (lambda: make_model("mlp", (4,), 0, seed=0), "n_outputs must be a whole number of at least 1, got 0"),
        (lambda: make_model("mlp", (4,), 2, width=0, seed=0), "width is 0: it must be a whole number of 1 or more"),
        (lambda: make_model("mlp", (4,), 2, width=2.5, seed=0), "width is 2.5: it must be a whole number of 1"),
        (
            lambda: make_model("cnn", (1, 8, 8), 2, depth=-1, seed=0),
            "depth is -1: it must be a whole number of 1 or more",
        ),
        (lambda: make_model("mlp", (), 2, seed=0), "input_shape is empty"),
        (lambda: make_model("mlp", (4, 0), 2, seed=0), "each size in input_shape must be a whole number"),
        (
            lambda: make_model("cnn", (64,), 2, seed=0),
            r"cnn takes images of shape \(channels, height, width\), got \(64,\)",
        ),
        (lambda: make_model("cnn", (1, 2, 8), 2, seed=0), "at least 4 x 4, got 2 x 8; use a smaller depth"),
        (lambda: make_model("resnet18", (3, 4, 4), 2, seed=0), "resnet18 needs images of at least 8 x 8, got 4 x 4"),
        (lambda: make_model("vit", (3, 2, 8), 2, seed=0), "vit needs images of at least 4 x 4, got 2 x 8"),
        (lambda: make_model("vit", (3, 8, 8), 2, width=20, seed=0), "width of vit must be a multiple of 16, got 20"),
        (lambda: make_model("mlp", (4,), 2, width=1, normalization="layer", seed=0), "over a single unit erases"),
    ],
)
def test_what_cannot_be_made_is_said(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
