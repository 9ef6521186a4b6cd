"""The one product behind gradient matching, and the gradient of a linear head in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

__all__ = ["gradient_vector_product", "linear_head_gradients"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@overload
def gradient_vector_product(
    loss: Tensor,
    parameters: Sequence[Tensor],
    inputs: Tensor,
    vectors: Sequence[Tensor | None],
    *,
    create_graph: bool = False,
) -> Tensor: ...
@overload
def gradient_vector_product(
    loss: Tensor,
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor | None],
    *,
    create_graph: bool = False,
) -> tuple[Tensor, ...]: ...
def gradient_vector_product(
    loss: Tensor,
    parameters: Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    vectors: Sequence[Tensor | None],
    *,
    create_graph: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """The gradient by the inputs of a loss's parameter gradient along fixed vectors: what every method that
    matches gradients or trajectories (DC, DSA, IDC, DREAM, DCC, TESLA) sends back to its images.

    Equivalent to::

        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        torch.autograd.grad(sum((g * v).sum() for g, v in zip(gradients, vectors)), inputs)

    without the parameters whose vector is None.

    Parameters
    ----------
    loss : a scalar that depends on the parameters and the inputs.
    parameters, vectors : lists of P tensors of the same shapes; a vector that is None stands for zeros.
    inputs : a tensor or several, such as images, soft labels or a learning rate.
    create_graph : whether the result may be differentiated again.

    Returns
    -------
    A tensor for a tensor, a tuple for several: zeros where the product does not depend on an input.

    Raises
    ------
    TypeError
        For what is no tensor.
    ValueError
        For lists of different lengths or shapes, and a loss that is no scalar.
    """
    op = "gradient_vector_product"
    if not isinstance(loss, Tensor):
        raise TypeError(f"{op}: loss must be a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"{op}: loss must be a scalar, got {tuple(loss.shape)}")
    single = isinstance(inputs, Tensor)
    targets = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    parameters = tuple(parameters)
    if len(vectors) != len(parameters):
        raise ValueError(
            f"{op}: vectors must hold P={len(parameters)} tensors as parameters does, got {len(vectors)}"
        )
    chosen: list[Tensor] = []
    along: list[Tensor] = []
    for i, (parameter, vector) in enumerate(zip(parameters, vectors, strict=True)):
        if vector is None:
            continue
        if not isinstance(vector, Tensor):
            raise TypeError(f"{op}: vectors[{i}] must be a tensor or None, got {type(vector).__name__}")
        if vector.shape != parameter.shape:
            raise ValueError(
                f"{op}: vectors[{i}] must be {tuple(parameter.shape)} as parameters[{i}] is, "
                f"got {tuple(vector.shape)}"
            )
        chosen.append(parameter)
        along.append(vector)
    products: Sequence[Tensor | None] = [None] * len(targets)
    if chosen:
        gradients = torch.autograd.grad(loss, chosen, create_graph=True, allow_unused=True)
        pairs = [
            (gradient, vector.to(gradient.dtype))
            for gradient, vector in zip(gradients, along, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if pairs:
            products = torch.autograd.grad(
                [pair[0] for pair in pairs],
                targets,
                [pair[1] for pair in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
    found = tuple(
        torch.zeros_like(target) if product is None else product
        for product, target in zip(products, targets, strict=True)
    )
    return found[0] if single else found


def linear_head_gradients(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Gradients of the mean cross entropy of a linear head by its weight and bias, in closed form: three
    matrix products, without a graph of a graph, differentiable like any other expression.

    Equivalent to::

        loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, targets)
        torch.autograd.grad(loss, (weight, bias), create_graph=True)

    With residuals ``R = (softmax(features @ weight.T + bias) - targets) / N`` they are ``R.T @ features`` and
    the column sums of ``R``. Their distance to real ones, ``decoct.gradient_distance(real, synthetic,
    "cosine")``, is what Linear Gradient Matching (Cazenavette et al., arXiv 2511.16674) minimises; its
    gradient by the features then takes three more products.

    Parameters
    ----------
    features : (..., N, D), with any leading axes: classes, heads.
    targets : class numbers (..., N), int64, or probabilities (..., N, K).
    weight, bias : (..., K, D) and (..., K) or None.

    Returns
    -------
    The gradients (..., K, D) and, with a bias, (..., K).

    Raises
    ------
    TypeError, ValueError
        For tensors of other dtypes or shapes.
    """
    op = "linear_head_gradients"
    for name, value in (("features", features), ("weight", weight), ("bias", bias), ("targets", targets)):
        if name == "bias" and value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
        if value.dtype not in FLOATS and not (name == "targets" and value.dtype == torch.int64):
            wanted = "int64 or floating-point" if name == "targets" else "floating-point"
            raise TypeError(f"{op}: {name} must be {wanted}, got {str(value.dtype).removeprefix('torch.')}")
    if features.dim() < 2:
        raise ValueError(f"{op}: features must be (..., N, D), got {tuple(features.shape)}")
    if weight.dim() < 2 or weight.shape[-1] != features.shape[-1]:
        raise ValueError(
            f"{op}: weight must be (..., K, D) with D={features.shape[-1]} as in features, "
            f"got {tuple(weight.shape)}"
        )
    count, classes = features.shape[-2], weight.shape[-2]
    if bias is not None and bias.shape[-1:] != (classes,):
        raise ValueError(
            f"{op}: bias must be (..., K) with K={classes} as in weight, got {tuple(bias.shape)}"
        )
    hard = targets.dtype == torch.int64
    shape: tuple[int, ...] = (count,) if hard else (count, classes)
    if tuple(targets.shape[-len(shape) :]) != shape:
        form = f"(..., N) with N={count}" if hard else f"(..., N, K) with N={count} and K={classes}"
        raise ValueError(f"{op}: targets must be {form}, got {tuple(targets.shape)}")
    scores = features @ weight.mT
    if bias is not None:
        scores = scores + bias[..., None, :]
    expectation = torch.nn.functional.one_hot(targets, classes) if hard else targets
    probabilities = torch.softmax(scores, -1)
    # Probabilities that do not sum to 1 weigh their rows, as in cross_entropy.
    mass = 1 if hard else expectation.sum(-1, keepdim=True)
    residuals = (probabilities * mass - expectation.to(scores.dtype)) / max(count, 1)
    gradient = residuals.mT @ features
    return (gradient,) if bias is None else (gradient, residuals.sum(-2))
