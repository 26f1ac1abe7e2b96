"""Curvature of the loss: extreme Hessian eigenvalues by Lanczos, and the loss along the gradient direction."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from plasticity_cl.diagnostics.undisturbed import (
    ordinary_loss,
    ordinary_tensor,
    outside_of_modes,
    undisturbed,
)
from plasticity_cl.errors import UserError
from plasticity_cl.seeding import generator

Loss = Callable[[Tensor, Tensor], Tensor]

_RISK = 0.1
"""Bound on the chance, over the start vector, that a larger eigenvalue outside the tolerance stays unseen."""

_ROUNDINGS = 10.0
"""Differences below this many roundings of the largest Ritz value in size are noise of the products."""

_NOT_TWICE_DIFFERENTIABLE = re.compile(r"is not implemented|differentiate twice|double backward", re.IGNORECASE)


@dataclass(frozen=True)
class HessianExtremes:
    """Both ends of a spectrum, as :func:`lanczos_extremes` sees them.

    Attributes:
        largest: The algebraically largest eigenvalue, to the tolerance asked for if ``converged``.
        smallest: The smallest Ritz value: an upper bound on the smallest eigenvalue, and close to it where that lies
            apart from the others. It is not part of the stopping rule.
        products: Matrix-vector products used.
        converged: Whether the stopping rule was met within the iterations allowed.
        residual: ||A x - largest x|| of the unit Ritz vector x: some eigenvalue is this near to ``largest``.
    """

    largest: float
    smallest: float
    products: int
    converged: bool
    residual: float


@dataclass(frozen=True)
class LossAlongGradient:
    """The loss on a line through the parameters w, along the negative gradient g.

    Attributes:
        steps: Step lengths a, shape [m], float64.
        losses: L(w - a g), shape [m], float64; not finite where the loss is not.
        gradient_norm: ||g||.
        curvature: g'Hg / g'g, the second derivative of the loss along the unit gradient; 0 where the gradient is zero.
            The quadratic model of the line is L(w) - a ||g||^2 + a^2 ||g||^2 curvature / 2, least at a = 1 / curvature.
    """

    steps: Tensor
    losses: Tensor
    gradient_norm: float
    curvature: float


def max_hessian_eigenvalue(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    tol: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
) -> HessianExtremes:
    """Largest eigenvalue of the Hessian of the loss in the trainable parameters, on one batch, in eval mode.

    Lanczos on Hessian-vector products: one forward pass, one backward pass whose graph is kept, then one backward pass
    through that graph for each product. "Largest" is algebraic (the sharpness): a most negative eigenvalue that is
    larger in size does not take its place, as it does in power iteration. The network is left exactly as it was.

    Memory: the graph of forward and backward pass, and one copy of the parameters a product.

    Args:
        model: The network. Parameters that do not require gradients are constants.
        loss: ``loss(model(inputs), targets)`` is the scalar to differentiate; for instance ``nn.CrossEntropyLoss()``.
        inputs: A batch, shape [n, ...].
        targets: What the loss compares with, shape [n, ...].
        tol: Relative error of the eigenvalue, not of the eigenvector; see :func:`lanczos_extremes` for the guarantee.
        max_iterations: Products at most.
        seed: Seed of the start vector.

    Returns:
        Both ends of the spectrum and what they cost.

    Raises:
        UserError: If no parameter is trainable, the loss is not a finite scalar that depends on one, an operation of
            the network cannot be differentiated twice, or ``tol`` or ``max_iterations`` is out of range.
    """
    with _looked_at(model, loss, inputs, targets) as surface:
        return lanczos_extremes(
            surface.hessian_product,
            surface.gradient.numel(),
            tol,
            max_iterations,
            seed,
            dtype=surface.gradient.dtype,
            device=surface.gradient.device,
        )


def loss_along_gradient(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, steps: Sequence[float] | Tensor | None = None
) -> LossAlongGradient:
    """Loss landscape along the gradient direction: L(w - a g) for a grid of step lengths a, in eval mode.

    A network that has lost plasticity shows a valley too narrow for its step size, or no slope at all. No weight is
    written: the shifted parameters are passed to the network from outside.

    Args:
        model: The network. Parameters that do not require gradients stay where they are.
        loss: ``loss(model(inputs), targets)`` gives the scalar to look at.
        inputs: A batch, shape [n, ...].
        targets: What the loss compares with, shape [n, ...].
        steps: Step lengths, shape [m], in the units of an SGD learning rate. By default 41 from -1 to 3 times
            1/|curvature|, the step that is best for the quadratic model of the line; 0 and 1 times are among them.

    Returns:
        Steps and losses, with slope and curvature at zero.

    Raises:
        UserError: As :func:`max_hessian_eigenvalue`, and if ``steps`` is not a flat, non-empty list of numbers.
    """
    with _looked_at(model, loss, inputs, targets) as surface:
        gradient = surface.gradient
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        unit = gradient / norm if norm > 0 else gradient
        curvature = float(unit @ surface.hessian_product(unit))
        if steps is None:
            grid = torch.arange(-10, 31, dtype=torch.float64) / (10 * (abs(curvature) or 1.0))
        else:
            grid = torch.as_tensor(steps, dtype=torch.float64, device="cpu")
            if grid.dim() != 1 or grid.numel() == 0:
                raise UserError(f"steps must be a non-empty list of numbers, got shape {list(grid.shape)}")
            if not grid.isfinite().all():
                raise UserError("steps must be finite numbers, and there are NaN or infinities among them")
        with torch.no_grad():
            losses = [surface.value_at(step) for step in grid.tolist()]
        return LossAlongGradient(grid.clone(), torch.tensor(losses, dtype=torch.float64), norm, curvature)


def lanczos_extremes(
    matvec: Callable[[Tensor], Tensor],
    n: int,
    tol: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> HessianExtremes:
    """Extreme eigenvalues of a symmetric matrix known by its products, by Lanczos with full reorthogonalisation.

    The largest Ritz value theta never exceeds the largest eigenvalue. Two conditions together stop the iteration:

    - The residual, beta |u_k| <= tol |theta|: some eigenvalue is that near. Alone, this customary rule is blind to a
      larger eigenvalue in whose direction the start vector happens to be short, and may return the second one.
    - The certificate that no larger one is left. With p_j the orthonormal Lanczos polynomials, an eigenvalue t > theta
      whose eigenvector has the component c in the unit start vector obeys c^2 sum_j p_j(t)^2 <= 1, because the
      eigenvector's projection on the Krylov space is no longer than 1. In a random direction |c| <= r sqrt(pi / (2 n))
      has a probability of at most r, so once sum_j p_j(t)^2 >= 2 n / (pi r^2) at t = theta + tol |theta|, no
      eigenvalue exceeds t, with probability 1 - r over the start vector, whatever the matrix. Here r = 0.1.
      (van Dorsselaer, Hochstenbach and van der Vorst 2000, "Computing probabilistic bounds for extreme eigenvalues of
      symmetric matrices with the Lanczos method", bound by the last polynomial; the sum is sharper.)

    The certificate costs one or two products. Both conditions together fail far less often than r: for spectra made to
    defeat them, whose two largest eigenvalues differ by a few times ``tol``, in 2% of the starts (the residual: 8%).

    So ``converged`` means that the relative error of ``largest`` is at most ``tol``; it is often far smaller. Products
    carry rounding noise: a tolerance finer than ten roundings of the largest Ritz value in size is raised to that.

    Args:
        matvec: Takes a vector of shape [n], returns the product, same shape, dtype and device.
        n: Order of the matrix.
        tol: Relative error of the largest eigenvalue, between 0 and 1.
        max_iterations: Products at most.
        seed: Seed of the start vector, which is drawn on the CPU: the same on every device.
        dtype: Precision of the vectors that are multiplied; all else is at least float32, and the tridiagonal matrix
            float64.
        device: Where the vectors live.

    Returns:
        Both ends of the spectrum and what they cost.

    Raises:
        UserError: If ``n``, ``tol`` or ``max_iterations`` is out of range, or a product is not finite.
    """
    if n < 1:
        raise UserError(f"the matrix must have at least one row, got n={n}")
    if not 0 < tol < 1:
        raise UserError(f"tol must be between 0 and 1, got {tol}")
    if max_iterations < 1:
        raise UserError(f"max_iterations must be at least 1, got {max_iterations}")
    with outside_of_modes():
        return _lanczos(lambda v: matvec(v).detach(), n, tol, max_iterations, seed, dtype, device)


def _lanczos(
    matvec: Callable[[Tensor], Tensor],
    n: int,
    tol: float,
    max_iterations: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> HessianExtremes:
    start = torch.randn(n, generator=generator(seed, "lanczos start"), dtype=torch.float64)
    wide = torch.promote_types(dtype, torch.float32)
    vector = (start / start.norm()).to(device, wide)
    basis = torch.empty((min(n, max_iterations, 32), n), dtype=wide, device=device)
    unseen_weight = _RISK**2 * math.pi / (2 * n)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        k = len(diagonal) + 1
        if k > len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[k - 1] = vector
        product = matvec(vector.to(dtype)).to(wide)
        diagonal.append(float(vector @ product))
        # The recurrence leaves little in the span; one sweep over the basis takes that out. Where the sweep cancelled
        # much, its own rounding counts, and a second one is enough (Daniel, Gragg, Kaufman and Stewart 1976).
        product = product - diagonal[-1] * vector
        if off_diagonal:
            product -= off_diagonal[-1] * basis[k - 2]
        before = float(torch.linalg.vector_norm(product, dtype=torch.float64))
        for _ in range(2):
            product = product - (basis[:k] @ product) @ basis[:k]
            beta = float(torch.linalg.vector_norm(product, dtype=torch.float64))
            if beta > before / 2:
                break
        if not (math.isfinite(diagonal[-1]) and math.isfinite(beta)):
            raise UserError("a product with the matrix is not finite; are there infinite or NaN weights?")
        values, last_row = _ritz(diagonal, off_diagonal)
        theta, residual = float(values[-1]), beta * abs(float(last_row[-1]))
        noise = _ROUNDINGS * torch.finfo(dtype).eps * float(values.abs().max())
        margin = max(tol * abs(theta), noise)
        # A beta of zero is an invariant subspace: the start vector has a part in every eigenspace, so all is known.
        exhausted = k == n or beta <= noise
        converged = exhausted or (
            residual <= margin
            and _christoffel(diagonal, [*off_diagonal, beta], theta + margin, enough=unseen_weight) <= unseen_weight
        )
        if converged or k >= max_iterations:
            return HessianExtremes(theta, float(values[0]), k, converged, residual)
        off_diagonal.append(beta)
        vector = product / beta


def _ritz(diagonal: list[float], off_diagonal: list[float]) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the tridiagonal matrix, ascending, and the last component of each eigenvector."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        matrix += torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), -1)  # eigh reads the lower triangle
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors[-1]


def _christoffel(diagonal: list[float], off_diagonal: list[float], t: float, enough: float) -> float:
    """Christoffel function 1 / sum_j p_j(t)^2 of the Lanczos polynomials, cut short once it is below ``enough``.

    Above every Ritz value the polynomials only grow, so the early return also keeps them from overflowing.
    """
    before, now, beta_before, total = 0.0, 1.0, 0.0, 1.0
    for alpha, beta in zip(diagonal, off_diagonal, strict=True):
        before, now, beta_before = now, ((t - alpha) * now - beta_before * before) / beta, beta
        total += now * now
        if total * enough >= 1:
            break
    return 1 / total


@contextmanager
def _looked_at(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> Iterator[_LossSurface]:
    """The loss surface of the network, undisturbed, whatever modes are on; half precision becomes single."""
    with undisturbed(model, differentiable=True) as network:
        inputs = ordinary_tensor(inputs, single_precision=network is not model)
        yield _LossSurface(network, ordinary_loss(loss), inputs, ordinary_tensor(targets, single_precision=True))


class _LossSurface:
    """The loss as a function of the trainable parameters: its gradient, products with its Hessian, values elsewhere."""

    gradient: Tensor
    """Shape [number of trainable parameters], detached, in the order of ``model.named_parameters()``."""

    def __init__(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> None:
        self._model, self._loss, self._inputs, self._targets = model, loss, inputs, targets
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if not self._parameters:
            raise UserError(
                "the network has no trainable parameter; the Hessian is taken in those that require gradients"
            )
        # Fused attention kernels have no second derivative; the plain formula does.
        with sdpa_kernel(SDPBackend.MATH):
            outputs = model(inputs)
            try:
                value = loss(outputs, targets)
            except (TypeError, AttributeError) as error:
                if isinstance(outputs, Tensor):
                    raise
                raise UserError(
                    f"the loss does not take what the network gives, a {type(outputs).__name__}; pass a loss that "
                    "does, or a network with one tensor as output"
                ) from error
        if value.numel() != 1:
            raise UserError(f"the loss must be a scalar, got shape {list(value.shape)}; take its mean")
        if not value.isfinite():
            raise UserError(f"the loss is {float(value.detach())}; curvature needs a finite loss")
        if not value.requires_grad:
            raise UserError("the loss depends on no trainable parameter; is the output detached?")
        parameters = tuple(self._parameters.values())
        self._gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        if _has_error_node(self._gradients):
            raise UserError(
                "the loss cannot be differentiated twice: it contains a custom function marked once_differentiable"
            )
        self.gradient = self._flat([None if part is None else part.detach() for part in self._gradients])
        if not self.gradient.isfinite().all():
            raise UserError(
                "the gradient of the loss is not finite, so its curvature is undefined: look at the weights"
            )

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Multiply the Hessian with a vector of the shape of ``gradient``, by differentiating gradient · vector."""
        # A gradient without a graph is constant in the parameters, one that is None is zero: neither has curvature.
        curved = [
            (gradient, part.to(gradient.dtype))
            for gradient, part in zip(self._gradients, self._split(vector), strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not curved:
            return torch.zeros_like(vector)
        try:
            columns = torch.autograd.grad(
                [gradient for gradient, _ in curved],
                tuple(self._parameters.values()),
                [part for _, part in curved],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if not _NOT_TWICE_DIFFERENTIABLE.search(str(error)):
                raise
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"the loss cannot be differentiated twice: {reason}; replace that operation") from error
        return self._flat(columns)

    def value_at(self, step: float) -> float:
        """Loss at the parameters minus ``step`` times the gradient."""
        shifted = {
            name: value - step * part.to(value.dtype)
            for (name, value), part in zip(self._parameters.items(), self._split(self.gradient), strict=True)
        }
        return float(self._loss(functional_call(self._model, shifted, (self._inputs,)), self._targets))

    def _split(self, vector: Tensor) -> list[Tensor]:
        parameters = self._parameters.values()
        parts = torch.split(vector, [value.numel() for value in parameters])
        return [part.view_as(value) for part, value in zip(parts, parameters, strict=True)]

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        parameters = self._parameters.values()
        return torch.cat(
            [
                (torch.zeros_like(value) if part is None else part).reshape(-1)
                for part, value in zip(parts, parameters, strict=True)
            ]
        )


def _has_error_node(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the graph passes a backward function that refuses to be differentiated.

    Autograd puts a node that raises in its place, but cuts the graph behind it, so that the node is never reached and
    its share of the Hessian would be missing silently.
    """
    waiting = [tensor.grad_fn for tensor in tensors if tensor is not None and tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            return True
        following = {step for step, _ in node.next_functions if step is not None} - seen
        seen |= following
        waiting.extend(following)
    return False
