"""The empirical neural tangent kernel of a network on a batch, exactly, and the scalars that describe it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from plasticity_cl.diagnostics.ntk_layers import BUDGET
from plasticity_cl.diagnostics.ntk_record import NOT_FINITE, Recorder
from plasticity_cl.diagnostics.ranks import count_to_share
from plasticity_cl.diagnostics.undisturbed import ordinary_loss, ordinary_tensor, undisturbed
from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.seeding import generator

Loss = Callable[[Tensor, Tensor], Tensor]

_KINDS = ("trace", "full", "sum", "loss")
_CONDITION_FLOOR = 1e-6
_SRANK_DELTA = 0.01
_ROUNDING = 1e-12


def empirical_ntk(
    model: nn.Module, inputs: Tensor, kind: str = "trace", targets: Tensor | None = None, loss: Loss | None = None
) -> Tensor:
    """Compute the empirical neural tangent kernel of a network in eval mode on a batch.

    With outputs f_c(x_i), c = 1..C, of samples x_i, i = 1..n, and gradients over all trainable parameters, there are

    - ``trace``, ``[n, n]``: K_ij = sum_c <grad f_c(x_i), grad f_c(x_j)>.
    - ``full``, ``[nC, nC]``: <grad f_c(x_i), grad f_d(x_j)> in row iC + c and column jC + d. For small n only.
    - ``sum``, ``[n, n]``: K_ij = <grad s(x_i), grad s(x_j)> with s = sum_c f_c / sqrt(C). Cheap; do not rely on it for
      worn networks.
    - ``loss``, ``[n, n]``: G_ij = <grad l_i, grad l_j>, l_i the loss of sample i. With :func:`cosine_gram` it is the
      gradient covariance of Lyle et al. 2023, "Understanding plasticity in neural networks".

    It takes one forward pass and C + 2 backward passes (3 for ``sum`` and ``loss``) that compute no weight gradients;
    each layer's share follows from its inputs and the gradients of its outputs. There are rules for linear layers, one-
    and two-dimensional convolutions, layer, group, RMS and batch normalisation, embeddings, PyTorch's multi-head
    attention, and parameters that are added, multiplied or expanded as they are; in modules or functional, shared or
    not. Any other trainable parameter is named in a warning, and its share comes from ``torch.func``, as exact but far
    slower.

    Args:
        model: The network; it is put into eval mode for the computation and left exactly as it was. Its output must be
            one tensor ``[n, ...]``; all entries of a sample count as outputs.
        inputs: Batch of samples, ``[n, ...]``.
        kind: ``"trace"``, ``"full"``, ``"sum"`` or ``"loss"``.
        targets: For ``"loss"``, the targets, ``[n, ...]``.
        loss: For ``"loss"``, called as ``loss(outputs, targets)``. It gives one value a sample, ``[n]``, as
            ``torch.nn.functional.cross_entropy`` does with ``reduction="none"``, or the mean or the sum of these: the
            losses l_i of the samples are then those whose mean or sum it is. For ``nn.CrossEntropyLoss(weight=w)``,
            which divides by the sum of the weights, l_i is w_i / mean(w) times the cross-entropy.

    Returns:
        The kernel, symmetric, and positive semi-definite up to rounding, in float64 on the network's device. For a
        network in float32 it is within 1e-5 of the exact one, relative to the largest entry. A network in half
        precision is looked at in float32.

    Raises:
        UserError: If the kind is unknown, the arguments do not fit it or each other, nothing is trainable, the outputs
            or gradients are not finite, the samples of a batch influence each other, in the network or in the loss, or
            the network uses activation checkpointing.
    """
    if kind not in _KINDS:
        raise unknown_name("kind of tangent kernel", kind, _KINDS)
    if kind == "loss" and (targets is None or loss is None):
        raise UserError("the tangent kernel of kind 'loss' needs targets and a loss")
    if kind != "loss" and not (targets is None and loss is None):
        raise UserError(f"targets and loss belong to the tangent kernel of kind 'loss', not {kind!r}")
    if inputs.dim() == 0 or len(inputs) == 0:
        raise UserError(f"a tangent kernel needs at least one sample, got inputs of shape {list(inputs.shape)}")
    if targets is not None and (targets.dim() == 0 or len(targets) != len(inputs)):
        raise UserError(f"got {len(inputs)} inputs, but targets of shape {list(targets.shape)}")
    with undisturbed(model, differentiable=True) as network:
        trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        if not trainable:
            raise UserError("the network has no trainable parameter, so it has no tangent kernel")
        inputs = ordinary_tensor(inputs, single_precision=network is not model)
        if targets is not None and loss is not None:
            targets, loss = ordinary_tensor(targets, single_precision=True), ordinary_loss(loss)
        recorder = Recorder(trainable, len(inputs))
        try:
            with recorder:
                outputs = network(inputs)
            _check_outputs(outputs, len(inputs))
            directions = _directions(kind, outputs, targets, loss)
            kernel, uncovered = recorder.kernel(outputs, directions, joint=kind == "full")
            activations = recorder.activations()
        finally:
            recorder.clear()
        if uncovered:
            _check_samples_apart(network, inputs, outputs.detach())
            del outputs
            _warn(network, uncovered)
            remaining = {name: trainable[name].detach() for name in uncovered}
            _add_by_torch_func(kernel, network, inputs, remaining, directions, activations)
        lower = kernel.flatten(2).flatten(0, 1).tril()
        gram = (lower + lower.tril(-1).mT).reshape(kernel.shape).permute(1, 0, 3, 2).flatten(2).flatten(0, 1)
        if not gram.isfinite().all():
            raise UserError(NOT_FINITE)
        return gram


def _check_outputs(outputs: object, n: int) -> None:
    if not isinstance(outputs, Tensor):
        raise UserError(f"a tangent kernel needs a network with one tensor as output, not a {type(outputs).__name__}")
    if outputs.dim() == 0 or len(outputs) != n:
        raise UserError(f"the network gave outputs of shape {list(outputs.shape)} for {n} samples")
    flat = outputs.detach().reshape(n, -1)
    # Outputs that a head has masked are minus infinity for all samples, and depend on no parameter.
    broken = int((~flat.isfinite() & ~(flat == -torch.inf).all(0)).any(1).sum())
    if broken:
        raise UserError(
            f"the network's outputs are not finite for {broken} of {n} samples, so its tangent kernel is undefined: "
            "look at its weights and inputs"
        )


def _check_samples_apart(model: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    with torch.no_grad():
        alone = model(inputs[-1:])[0]
    if (alone - outputs[-1]).abs().max() > 1e-3 * outputs.abs().max():
        raise UserError(
            "the network's output for a sample alone differs from that in a batch, so samples influence each other or "
            "the output is random, and a tangent kernel between samples is undefined"
        )


def _directions(kind: str, outputs: Tensor, targets: Tensor | None, loss: Loss | None) -> Tensor:
    """Give the directions ``[m, n, C]`` in which each sample's output is differentiated."""
    flat = outputs.detach().reshape(len(outputs), -1)
    n, C = flat.shape
    if kind == "sum":
        return torch.full_like(flat, C**-0.5)[None]
    if kind != "loss":
        return torch.eye(C, dtype=flat.dtype, device=flat.device)[:, None].expand(C, n, C)
    assert targets is not None
    assert loss is not None
    return _loss_gradients(outputs.detach(), targets, loss).reshape(1, n, C)


def _loss_gradients(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Differentiate each sample's loss by its outputs, also where the loss gives their mean or sum.

    Row i of the gradient of a sum is the gradient of sample i's loss, that of a mean 1/n of it, whatever weights,
    ignored classes or smoothing are inside. Which of both it is shows in a batch with every sample twice.

    Args:
        outputs: ``[n, ...]``, without a graph.
        targets: ``[n, ...]``.
        loss: As in :func:`empirical_ntk`.

    Returns:
        The gradients, of the shape of the outputs.
    """
    n = len(outputs)

    def gradients(at: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        leaf = at.detach().requires_grad_()
        values = loss(leaf, targets)
        if values.numel() not in (1, len(leaf)):
            raise UserError(
                f"the loss gave values of shape {list(values.shape)} for {len(leaf)} samples; give one a sample, or one"
            )
        if not values.requires_grad:
            raise UserError("the loss cannot be differentiated by the network's outputs")
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient

    values, whole = gradients(outputs, targets)
    if not (values.isfinite().all() and whole.isfinite().all()):
        raise UserError("the loss or its gradient is not finite: look at the targets, and at what the loss ignores")
    if n == 1 or not whole.any():
        return whole
    # Other outputs in half of the rows must leave the gradients of the other half alone. Probabilities stay such.
    rng = generator("samples of the loss", n)
    moved = (torch.randperm(n, generator=rng) < n // 2).to(outputs.device)
    noise = torch.randn(outputs.shape, generator=rng).to(outputs)
    probabilities = bool((outputs >= 0).all() and (outputs <= 1).all())
    changed = 1 - outputs if probabilities else outputs + 3 * noise
    others = torch.where(moved.reshape(-1, *[1] * (outputs.dim() - 1)), changed, outputs)
    separate = _alike(gradients(others, targets)[1][~moved], whole[~moved], whole)
    if separate and values.numel() == 1:
        try:
            twice = gradients(torch.cat([outputs, outputs]), torch.cat([targets, targets]))[1][:n]
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(
                "the loss gives one value and takes no batch of another size, so each sample's share of it is unknown: "
                f"give one value a sample ({str(error).splitlines()[0]})"
            ) from error
        if _alike(2 * twice, whole, whole):
            return n * whole
        separate = _alike(twice, whole, whole)
    if not separate:
        raise UserError(
            "the loss is neither a mean nor a sum over the samples of a loss of each (or it is random), so a kernel of "
            "the samples' losses is undefined"
        )
    return whole


def _alike(found: Tensor, expected: Tensor, scale: Tensor) -> bool:
    """Whether two gradients are the same but for rounding."""
    return bool((found - expected).abs().max() <= 1e-3 * scale.abs().max())


def _warn(model: nn.Module, names: list[str]) -> None:
    owners = {name: type(module).__name__ for name, module in model.named_modules()}
    described = ", ".join(f"{name} ({owners[name.rpartition('.')[0]]})" for name in names)
    warnings.warn(
        f"empirical_ntk has no rule for the use of {described}: their share is computed by torch.func, slowly",
        stacklevel=3,
    )


def _add_by_torch_func(
    kernel: Tensor,
    model: nn.Module,
    inputs: Tensor,
    parameters: dict[str, Tensor],
    directions: Tensor,
    activations: int,
) -> None:
    """Add the share of some parameters from per-sample gradients, ``[block, m, P]`` at a time.

    Args:
        kernel: ``[m, n, m, n]``, or ``[1, n, 1, n]`` for the sum over directions; changed in place.
        model: The network, in eval mode.
        inputs: ``[n, ...]``.
        parameters: The parameters whose share is wanted, detached.
        directions: ``[m, n, C]``.
        activations: Entries of a sample's activations that a backward pass goes through, about.
    """
    joint = kernel.shape[0] > 1
    m, n = directions.shape[:2]
    size = sum(parameter.numel() for parameter in parameters.values())
    block = max(1, 8 * BUDGET // (m * size * directions.element_size()))
    chunk = max(1, 8 * BUDGET // (m * (size + 2 * activations) * directions.element_size()))

    weights = torch.linspace(1, 2, m).to(directions)

    def gradients(x: Tensor, v: Tensor) -> Tensor:
        """Gradients ``[m, P]`` of one sample."""
        pull_back = vjp(lambda values: functional_call(model, values, (x[None],)).reshape(-1), parameters)[1]
        (parts,) = vmap(pull_back)(v)
        return torch.cat([part.flatten(1) for part in parts.values()], dim=1)

    def one_by_one(x: Tensor, v: Tensor) -> Tensor:
        """The same by plain autograd, for networks that vmap cannot run, or gets wrong (PReLU in torch 2.14)."""
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
        output = functional_call(model, leaves, (x[None],)).reshape(-1)
        rows = []
        for direction in v:
            parts = torch.autograd.grad(
                output, list(leaves.values()), direction, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(rows)

    def of_block(samples: slice) -> Tensor:
        xs, vs = inputs[samples], directions[:, samples].movedim(1, 0)
        try:
            result = vmap(gradients, chunk_size=chunk)(xs, vs)
            right = _agree(weights @ result[-1], one_by_one(xs[-1], (weights @ vs[-1])[None])[0])
        except RuntimeError:
            right = False
        if not right:
            result = torch.stack([one_by_one(x, v) for x, v in zip(xs, vs, strict=True)])
        # Without joint products the directions are just more parameters.
        return result.detach() if joint else result.detach().reshape(len(xs), 1, -1)

    for start in range(0, n, block):
        rows = slice(start, start + block)
        X = of_block(rows)
        for other in range(0, start + 1, block):
            columns = slice(other, other + block)
            Y = X if other == start else of_block(columns)
            product = torch.einsum("icp,jdp->cidj", X, Y)
            kernel[:, rows, :, columns] += product
            if other != start:
                kernel[:, columns, :, rows] += product.permute(2, 3, 0, 1)


def _agree(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-3 * expected.abs().max())


def cosine_gram(gram: Tensor) -> Tensor:
    """Divide a Gram matrix by the norms: D^-1/2 K D^-1/2 with D the diagonal of K.

    Of the ``loss`` kernel this is the cosine similarity of the samples' gradients.

    Args:
        gram: ``[n, n]``, positive semi-definite.

    Returns:
        ``[n, n]`` in float64, with ones on the diagonal; a sample without gradient has zeros in its row and column.

    Raises:
        UserError: If ``gram`` is not a finite, symmetric matrix.
    """
    gram = _checked(gram)
    diagonal = gram.diagonal()
    scale = torch.where(diagonal > 0, diagonal, torch.inf).rsqrt()
    return gram * scale[:, None] * scale


@dataclass(frozen=True)
class NTKStatistics:
    """Scalars of a kernel K with eigenvalues lambda_1 >= ... >= lambda_n, p_i = lambda_i / sum lambda.

    The eigenvalues of K are the squares of the singular values of the Jacobian. All measures here use the eigenvalues,
    so they differ from those of the same name for feature matrices, which use singular values. A kernel that is zero
    has rank 0 in every measure of rank.

    Attributes:
        effective_rank: exp(-sum p log p) (Roy and Vetterli 2007, on eigenvalues).
        srank: The smallest k with lambda_1 + ... + lambda_k >= 0.99 sum lambda (Kumar et al. 2021, on eigenvalues).
        participation_ratio: (sum lambda)^2 / sum lambda^2.
        trace_over_top: sum lambda / lambda_1; the stable rank of the Jacobian.
        condition_number: lambda_1 / max(lambda_n, 1e-6 lambda_1). The floor makes 1e6 the largest value, that of every
            singular kernel.
        diagonal_plus_rank_one: How close the cosine form C = D^-1/2 K D^-1/2 is to diagonal plus rank one:
            1 - ||off(C - u u^T)||^2 / ||off C||^2, with off the part off the diagonal and u fitted to it, starting from
            the leading eigenvector of off C. 1 if nothing is off the diagonal. Near 1 for the trace kernel even of
            fresh networks: use the loss kernel, and compare with the network's own initialisation.
        mean_cosine: Mean of C off the diagonal; 0 for a single sample.
    """

    effective_rank: float
    srank: float
    participation_ratio: float
    trace_over_top: float
    condition_number: float
    diagonal_plus_rank_one: float
    mean_cosine: float


def ntk_statistics(gram: Tensor) -> NTKStatistics:
    """Describe a kernel, such as :func:`empirical_ntk` gives, by scalars that do not depend on the samples' order.

    Args:
        gram: ``[n, n]``, positive semi-definite up to rounding; eigenvalues below zero count as zero.

    Returns:
        The scalars, computed in float64.

    Raises:
        UserError: If ``gram`` is not a finite, symmetric matrix.
    """
    return NTKStatistics(**spectrum_scalars(gram), **alignment_scalars(gram))


def spectrum_scalars(gram: Tensor) -> dict[str, float]:
    """The half of :func:`ntk_statistics` that comes from the eigenvalues, by name of the attribute.

    Ties are told as of numbers in float32, since kernels, though float64, mostly come from networks in float32.
    """
    values = torch.linalg.eigvalsh(_checked(gram)).flip(0).clamp(min=0)
    top = float(values[0])
    names = ("effective_rank", "srank", "participation_ratio", "trace_over_top", "condition_number")
    if top == 0:
        return dict(zip(names, (0.0, 0.0, 0.0, 0.0, 1 / _CONDITION_FLOOR), strict=True))
    shares = values / top
    total = shares.sum()
    p = shares / total
    scalars = (
        float(torch.special.entr(p).sum().exp()),
        float(count_to_share(shares, _SRANK_DELTA, torch.float32)),
        float(total**2 / shares.square().sum()),
        float(total),
        1 / max(float(shares[-1]), _CONDITION_FLOOR),
    )
    return dict(zip(names, scalars, strict=True))


def alignment_scalars(gram: Tensor) -> dict[str, float]:
    """The half of :func:`ntk_statistics` that comes from the cosines, by name of the attribute."""
    closeness, mean_cosine = _diagonal_plus_rank_one(_checked(gram))
    return {"diagonal_plus_rank_one": closeness, "mean_cosine": mean_cosine}


def _checked(gram: Tensor) -> Tensor:
    """Give the Gram matrix in float64, exactly symmetric, divided by its largest entry so that nothing overflows."""
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
        raise UserError(f"a Gram matrix is square, [n, n], got shape {list(gram.shape)}")
    gram = gram.detach().double()
    if not gram.isfinite().all():
        raise UserError("the Gram matrix is not finite")
    gram = gram / (float(gram.abs().max()) or 1.0)
    if (gram - gram.mT).abs().max() > 1e-4:
        raise UserError("the Gram matrix is not symmetric")
    return (gram + gram.mT) / 2


def _diagonal_plus_rank_one(gram: Tensor) -> tuple[float, float]:
    """Give closeness to diagonal plus rank one, and the mean cosine off the diagonal."""
    n = len(gram)
    off = cosine_gram(gram).fill_diagonal_(0)
    if float(off.abs().max()) < _ROUNDING:
        return 1.0, 0.0
    size = float(off.square().sum())
    # The diagonal is free, so fill it with that of the fit and fit again: each such step lowers the residual.
    closeness, u = -torch.inf, off.new_zeros(n)
    for _ in range(100):
        values, vectors = torch.linalg.eigh(off + u.square().diag())
        u = values[-1].clamp(min=0).sqrt() * vectors[:, -1]
        residual = (off - torch.outer(u, u)).fill_diagonal_(0)
        previous, closeness = closeness, 1 - float(residual.square().sum()) / size
        if closeness - previous < 1e-9:
            break
    return closeness, float(off.sum()) / (n * (n - 1))
