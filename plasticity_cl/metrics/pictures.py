"""The picture of a network on a batch: its tangent kernel, the kernel's spectrum, and the loss along the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from plasticity_cl.diagnostics import LossAlongGradient, cosine_gram

_INK, _MUTED, _LINE = "#222222", "#666666", "#0072B2"


def network_picture(kernel: Tensor, targets: Tensor, line: LossAlongGradient) -> Image.Image:
    """Draw three panels side by side.

    1. The kernel in its cosine form, K_ij / sqrt(K_ii K_jj), samples ordered by target: a network that tells classes
       apart has blocks along the diagonal, one that sees all samples alike is of one colour.
    2. Its eigenvalues over the largest, on a logarithmic scale, down to 1e-7: what a worn network has lost is at the
       right.
    3. The loss along the negative gradient, in units of 1/|curvature|, with its quadratic model.

    Args:
        kernel: ``[n, n]``, as :func:`~plasticity_cl.diagnostics.empirical_ntk` gives it.
        targets: ``[n]`` or ``[n, d]``; of several outputs the first orders.
        line: From :func:`~plasticity_cl.diagnostics.loss_along_gradient`.

    Returns:
        The picture, 900 x 300 pixels, RGB.
    """
    # Places are fixed: fitting them would cost more than all the rest.
    figure = Figure(figsize=(9, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    places = ((0.01, 0.14, 0.27, 0.76), (0.4, 0.14, 0.25, 0.76), (0.72, 0.14, 0.26, 0.76))
    heat_map, spectrum, landscape = (figure.add_axes(place) for place in places)
    _draw_kernel(figure, heat_map, kernel.cpu(), targets.cpu())
    _draw_spectrum(spectrum, kernel.cpu())
    _draw_landscape(landscape, line)
    for axes in (heat_map, spectrum, landscape):
        axes.tick_params(labelsize=8, colors=_MUTED)
        axes.set_title(axes.get_title(), y=1.0, fontsize=9, color=_INK)  # without y, matplotlib looks for a free place
        axes.xaxis.label.set(fontsize=8, color=_INK)
        axes.yaxis.label.set(fontsize=8, color=_INK)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw_kernel(figure: Figure, axes: Any, kernel: Tensor, targets: Tensor) -> None:
    key = targets.reshape(len(targets), -1)[:, 0]
    order = torch.argsort(key, stable=True)
    cosines = cosine_gram(kernel)[order][:, order]
    image = axes.imshow(cosines.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    if not targets.is_floating_point():
        for border in (key[order].diff() != 0).nonzero().flatten().tolist():
            axes.axhline(border + 0.5, color=_MUTED, linewidth=0.4)
            axes.axvline(border + 0.5, color=_MUTED, linewidth=0.4)
    axes.set(title="tangent kernel, cosines", xlabel="samples, ordered by target", xticks=[], yticks=[])
    bar = figure.colorbar(image, cax=figure.add_axes((0.285, 0.2, 0.012, 0.64)))
    bar.ax.set_title("", y=1.0)
    bar.ax.tick_params(labelsize=7)


def _draw_spectrum(axes: Any, kernel: Tensor) -> None:
    values = torch.linalg.eigvalsh(kernel).flip(0).clamp(min=0)
    shares = values / values[0].clamp(min=torch.finfo(values.dtype).tiny)
    axes.semilogy(np.arange(1, len(shares) + 1), shares.clamp(min=1e-7).numpy(), color=_LINE, marker=".", markersize=4)
    axes.set(title="its eigenvalues over the largest", xlabel="index", ylim=(7e-8, 1.5))
    axes.minorticks_off()
    axes.grid(color="#ececec")


def _draw_landscape(axes: Any, line: LossAlongGradient) -> None:
    scale = abs(line.curvature) or 1.0
    steps, losses = line.steps.numpy(), line.losses.numpy()
    finite = np.isfinite(losses)
    start = float(np.interp(0.0, steps, losses))
    model = start + line.gradient_norm**2 * (-steps + steps**2 * line.curvature / 2)
    axes.plot(steps * scale, model, color=_MUTED, linewidth=1, linestyle="--", label="quadratic model")
    axes.plot(steps[finite] * scale, losses[finite], color=_LINE, label="loss")
    axes.plot(0, start, "o", color=_INK, markersize=4)
    axes.set(title="loss along the negative gradient", xlabel="step, in units of 1 / |curvature|")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(color="#ececec")
