"""The pictures of docs/diagnostics.md: a fresh network beside one that has lost plasticity, on bundled digits.

    python scripts/diagnostics_pictures.py                        about ten seconds; writes docs/images/*.png

Both are an MLP 64-128-128-128-10 from the same initialisation. The worn one was trained on 512 digits whose labels were
drawn anew 15 times, 20 epochs each (Adam 1e-3, batches of 32). After 40 times a whole layer is dead, and the pictures
show nothing.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from plasticity_cl import diagnostics
from plasticity_cl.models import make_model
from plasticity_cl.scenarios import load_source
from plasticity_cl.seeding import generator

RESETS = 15
COLOURS = {"fresh": "#0072B2", "worn": "#D55E00"}


def wear_out(model: nn.Module, inputs: Tensor, resets: int = RESETS, epochs: int = 20) -> None:
    """Train on one labelling at random after another."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for reset in range(resets):
        labels = torch.randint(10, (len(inputs),), generator=generator(0, "labels", reset))
        order = generator(0, "order", reset)
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs), generator=order).split(32):
                optimizer.zero_grad()
                cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()


def preactivations(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """What goes into each ReLU, by its name."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach().clone()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return seen


def panels(n: int, width: float = 3.2) -> tuple[Any, list[Any]]:
    """A figure of n panels in a row."""
    figure, axes = plt.subplots(1, n, figsize=(width * n, 2.7), layout="constrained", squeeze=False)
    for each in axes[0]:
        each.tick_params(labelsize=8)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def draw_units(networks: dict[str, nn.Module], inputs: Tensor) -> Any:
    """Histogram of all preactivations of each layer, and the units' P(z > 0) in the last layer."""
    found = {name: preactivations(model, inputs) for name, model in networks.items()}
    layers = list(found["fresh"])
    figure, axes = panels(len(layers) + 1, 2.6)
    for i, layer in enumerate(layers):
        values = torch.cat([each[layer].flatten() for each in found.values()])
        bins = np.linspace(float(values.min()), float(values.max()), 101)
        for name, colour in COLOURS.items():
            axes[i].hist(found[name][layer].flatten().numpy(), bins, density=True, color=colour, alpha=0.6, label=name)
        axes[i].set_yscale("log")
        axes[i].set_title(f"preactivations, layer {i + 1}", fontsize=9)
        axes[i].set_xlabel("z", fontsize=8)
        axes[i].axvline(0, color="#666666", linewidth=0.6)
    axes[0].set_ylabel("density", fontsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    bins = np.linspace(0, 1, 21)
    for name, colour in COLOURS.items():
        positive = np.concatenate(
            [layer.positive for layer in diagnostics.unit_statistics(networks[name], inputs).layers.values()]
        )
        axes[-1].hist(positive, bins, color=colour, alpha=0.6)
    axes[-1].set_title("P(z > 0) of the units, all layers", fontsize=9)
    axes[-1].set_xlabel("share of the samples", fontsize=8)
    return figure


def draw_ranks(networks: dict[str, nn.Module], inputs: Tensor) -> Any:
    """Singular values of the penultimate features."""
    figure, (axes,) = panels(1, 4.4)
    for name, colour in COLOURS.items():
        rank = diagnostics.feature_rank(diagnostics.penultimate_features(networks[name], inputs))
        shares = rank.singular_values / rank.singular_values[0]
        label = f"{name}: effective rank {rank.effective_rank:.1f}, srank {rank.srank}"
        axes.semilogy(np.arange(1, len(shares) + 1), shares.clamp_min(1e-8).numpy(), color=colour, label=label)
    axes.set_xlabel("index", fontsize=8)
    axes.set_title("singular values of the features, over the largest", fontsize=9)
    axes.set_ylim(1e-7, 2)
    axes.legend(fontsize=8, frameon=False)
    return figure


def draw_kernels(networks: dict[str, nn.Module], inputs: Tensor, labels: Tensor) -> Any:
    """The loss kernel's cosines, samples ordered by label, and the eigenvalues of the trace kernel."""
    figure, axes = panels(3)
    order = labels.argsort(stable=True)
    borders = (labels[order].diff() != 0).nonzero().flatten().tolist()
    for i, (name, colour) in enumerate(COLOURS.items()):
        model = networks[name]
        by_loss = diagnostics.empirical_ntk(model, inputs[order], "loss", labels[order], nn.CrossEntropyLoss())
        image = axes[i].imshow(diagnostics.cosine_gram(by_loss).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        for border in borders:
            axes[i].axhline(border + 0.5, color="#666666", linewidth=0.3)
            axes[i].axvline(border + 0.5, color="#666666", linewidth=0.3)
        axes[i].set(xticks=[], yticks=[])
        axes[i].set_title(f"{name}: cosines of gradients", fontsize=9)
        axes[i].set_xlabel("samples, ordered by label", fontsize=8)
        kernel = diagnostics.empirical_ntk(model, inputs)
        values = torch.linalg.eigvalsh(kernel).flip(0)
        rank = diagnostics.ntk_statistics(kernel).effective_rank
        label = f"{name}: effective rank {rank:.1f}"
        axes[2].semilogy((values / values[0]).clamp_min(1e-9).numpy(), color=colour, label=label)
    figure.colorbar(image, ax=axes[:2], shrink=0.8).ax.tick_params(labelsize=7)
    axes[2].set_title("eigenvalues of the trace kernel", fontsize=9)
    axes[2].set_xlabel("index", fontsize=8)
    axes[2].legend(fontsize=8, frameon=False)
    return figure


def draw_landscapes(networks: dict[str, nn.Module], inputs: Tensor, labels: Tensor) -> Any:
    """Loss along the gradient with its quadratic model, in each network's own step, and the probe's loss curves."""
    figure, axes = panels(3)
    for i, (name, colour) in enumerate(COLOURS.items()):
        grid = torch.linspace(-0.5, 2, 51)
        line = diagnostics.loss_along_gradient(networks[name], nn.CrossEntropyLoss(), inputs, labels, grid)
        steps = line.steps.numpy()
        start = float(np.interp(0, steps, line.losses.numpy()))
        model = start + line.gradient_norm**2 * (-steps + steps**2 * line.curvature / 2)
        axes[i].plot(steps, line.losses.numpy(), color=colour, label="loss")
        axes[i].plot(steps, model, "--", color="#666666", linewidth=1, label="quadratic model")
        axes[i].plot(0, start, "o", color="black", markersize=4)
        low, high = float(line.losses.min()), float(line.losses.max())
        axes[i].set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes[i].set_title(f"{name}: loss along the gradient", fontsize=9)
        axes[i].set_xlabel("step length (1 = an SGD step of rate 1)", fontsize=8)
        axes[i].legend(fontsize=8, frameon=False)
    probe = diagnostics.trainability(networks["worn"], inputs, networks["fresh"])
    for name, fit in (("fresh", probe.fresh), ("worn", probe.worn)):
        axes[2].plot(fit.losses.mean(0).numpy(), color=COLOURS[name], label=f"{name}, rate {fit.learning_rate:g}")
    axes[2].set_title(f"probe: random labels, ratio {probe.ratio:.2f}", fontsize=9)
    axes[2].set_xlabel("step", fontsize=8)
    axes[2].set_ylim(bottom=0)
    axes[2].legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    """Wear a network out and draw it beside the fresh one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "images", help="folder")
    options = parser.parse_args()
    torch.set_num_threads(1)

    source = load_source("digits")
    inputs, labels = source.train_inputs[:512], source.train_labels[:512]
    fresh = make_model("mlp", source.input_shape, source.n_classes, seed=0)
    worn = copy.deepcopy(fresh)
    wear_out(worn, inputs)
    networks = {"fresh": fresh, "worn": worn}
    few, few_labels = inputs[:128], labels[:128]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("units", draw_units(networks, inputs)),
        ("ranks", draw_ranks(networks, inputs)),
        ("tangent_kernel", draw_kernels(networks, few, few_labels)),
        ("landscape", draw_landscapes(networks, few, few_labels)),
    ):
        figure.savefig(options.out / f"diagnostics_{name}.png", dpi=100)
    reference = diagnostics.unit_statistics(fresh, inputs)
    for name, model in networks.items():
        total = diagnostics.unit_statistics(model, inputs, reference).total
        print(
            f"{name}: dead {total.dead_units:.2f}, linearised {total.linearised_units:.2f}, "
            f"sign entropy {total.sign_entropy:.2f}, shift {total.preactivation_shift:.1f}, "
            f"parameter norm {diagnostics.parameter_norm(model).total:.1f}"
        )


if __name__ == "__main__":
    main()
