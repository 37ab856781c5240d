"""Products and inverses of the small matrices: Gram matrices in float64, whatever the features' own precision.

A rank-deficient Gram matrix formed in float32 carries noise of about 1e-7 of its largest eigenvalue, which a small
multiplier lifts into the result; formed in float64 the noise is harmless, at the cost of a b x b x m product.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ._workspace import borrow, give_back

#: Elements converted to float64 at a time on the host, in memory that is at hand; of few of them any memory will do.
CONVERTED_AT_ONCE = 1 << 19
FEW = 1 << 15
#: Columns converted at a time elsewhere, where there are more than can be converted at once. Both are small beside a
#: feature map of any size.
CHUNK = 1 << 11
AT_ONCE = 1 << 13


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def values_at_hand(x: Tensor) -> bool:
    """Whether the host can read x without waiting, tracing or unwrapping: a plain tensor on the CPU, run eagerly."""
    return x.device.type == "cpu" and type(x) is Tensor and runs_plainly()


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, which takes a microsecond even where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def runs_plainly() -> bool:
    """Whether operations run as they are called, under no compiler and no transform of `torch.func`."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


#: Powers of two between which squares and sums of float32 features stay within float32.
ORDINARY = (-40, 40)


#: And between which a unit is looked for where the host may not know whether one is needed.
BOUNDS = (2.0**-120, 2.0**120)
#: The bits of a number's exponent, with which it is read as an integer: they are the power of two below it.
_EXPONENT = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}


def unit_of(size: Tensor) -> float | Tensor:
    """A power of two near the 0-dimensional `size` >= 0, so that dividing by it is exact. Without gradient.

    A plain number where the host may know: 1.0 for what is ordinary, so that nothing changes there, or is 0 or not
    finite and has no size. Elsewhere it is within `BOUNDS`, and not finite where `size` is NaN.
    """
    size = size.detach()
    if not values_at_hand(size):
        return power_of_2_below(size.clamp(*BOUNDS))
    low, high = ORDINARY
    value = float(size)
    if value == 0.0 or not math.isfinite(value) or 2.0**low <= value <= 2.0**high:
        return 1.0
    return 2.0 ** round(math.log2(value))


def power_of_2_below(x: Tensor) -> Tensor:
    """The largest power of two that is no larger than each x > 0, in one operation; infinity for what is not finite."""
    # A compiler makes one operation of these, too, and may write what cannot read bits, as torch.func of 2.6 cannot.
    if not runs_plainly():
        return x.log2().floor().exp2()
    whole, mask = _EXPONENT[x.dtype]
    return (x.view(whole) & mask).view(x.dtype)


def narrow_product(wide: Tensor, x: Tensor) -> Tensor:
    """`wide @ x` in the precision of `x`, where entries of `wide` alone may be beyond its range."""
    if wide.dtype == x.dtype or wide.numel() == 0:
        return wide.to(x.dtype) @ x
    root = unit_of(torch.linalg.vector_norm(wide, math.inf).sqrt())
    if isinstance(root, float) and root == 1.0:
        return wide.to(x.dtype) @ x
    return (wide / root**2).to(x.dtype) @ x * root * root


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` in the accumulation dtype, [p, k] x [q, k] -> [p, q]."""
    wide = accumulation_dtype(a.device)
    if a.dtype == wide and b.dtype == wide:
        return a @ b.mT
    if a.numel() + b.numel() > FEW and values_at_hand(a) and values_at_hand(b):
        return _product_on_host(a, b, wide)
    if a.shape[-1] <= AT_ONCE:
        whole = a.to(wide)
        return whole @ (whole if a is b else b.to(wide)).mT
    total = a.new_zeros((a.shape[0], b.shape[0]), dtype=wide)
    for left, right in zip(torch.split(a, CHUNK, -1), torch.split(b, CHUNK, -1), strict=True):
        wide_left = left.to(wide)
        total.addmm_(wide_left, (wide_left if a is b else right.to(wide)).mT)
    return total


def _product_on_host(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """The same, with the conversions in memory that is at hand."""
    rows, size = len(a) if a is b else len(a) + len(b), a.shape[-1]
    columns = min(size, max(1, CONVERTED_AT_ONCE // max(1, rows)))
    buffer = borrow(rows * columns, wide)

    def converted(x: Tensor, start: int, before: int) -> Tensor:
        part = x[:, start : start + columns]
        return buffer[before : before + part.numel()].view(part.shape).copy_(part)

    total = a.new_zeros((len(a), len(b)), dtype=wide)
    for start in range(0, size, max(1, columns)):
        left = converted(a, start, 0)
        total.addmm_(left, (left if a is b else converted(b, start, left.numel())).mT)
    give_back(buffer)
    return total


Forward = TypeVar("Forward", bound=Callable[..., Any])


def _with_signature(forward: Forward) -> Forward:
    """`forward` with its signature at hand: `Function.apply` asks for it at every call, and finding it takes longer
    than the product of two small matrices."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


class _CrossGram(Function):
    generate_vmap_rule = True

    @staticmethod
    @_with_signature
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _product(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        grad_a = narrow_product(grad, b) if ctx.needs_input_grad[0] else None
        grad_b = narrow_product(grad.mT, a) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b


class _Gram(Function):
    generate_vmap_rule = True

    @staticmethod
    @_with_signature
    def forward(a: Tensor) -> Tensor:
        return _product(a, a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        a: Tensor = ctx.saved_tensors[0]
        return narrow_product(grad + grad.mT, a)


def cross_gram(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` for `a` [p, k] and `b` [q, k], accumulated and returned in float64; twice differentiable."""
    return cast(Tensor, _CrossGram.apply(a, b))  # type: ignore[no-untyped-call]


def gram(a: Tensor) -> Tensor:
    """`a @ a.T` for `a` [p, k], accumulated and returned in float64; twice differentiable."""
    return cast(Tensor, _Gram.apply(a))  # type: ignore[no-untyped-call]


def shifted(matrix: Tensor, shift: Tensor, identity: Tensor) -> Tensor:
    """`matrix + shift I`, [..., k, k] for `shift` [...] and the identity [k, k]."""
    return torch.addcmul(matrix, shift[..., None, None], identity)


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix^-1 @ right` for one symmetric, positive definite matrix [k, k] or many, with no error flag read back.

    By Cholesky and two triangular solves: of torch's ways this is the quickest on a GPU, and the only one that a CUDA
    graph takes for many matrices of any size.
    """
    factor = torch.linalg.cholesky_ex(matrix, check_errors=False).L
    half = torch.linalg.solve_triangular(factor, right.expand(matrix.shape), upper=False)
    return cast(Tensor, torch.linalg.solve_triangular(factor.mT, half, upper=True))


def shifted_inverse(matrix: Tensor, shift: Tensor, identity: Tensor | None = None) -> Tensor:
    """`(matrix + shift I)^-1`, differentiable, with no error flag read back from the device.

    A singular or non-finite matrix gives non-finite entries instead of an exception.
    """
    if identity is None:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return cast(Tensor, torch.linalg.inv_ex(shifted(matrix, shift, identity), check_errors=False).inverse)


class _KnownInverse(Function):
    generate_vmap_rule = True

    @staticmethod
    @_with_signature
    def forward(matrix: Tensor, shift: Tensor, inverse: Tensor) -> Tensor:
        return inverse.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        inverse: Tensor = ctx.saved_tensors[0]  # an output: differentiating this again is right as well
        grad_matrix = torch.addmm(grad, inverse.mT @ grad, inverse.mT, beta=0.0, alpha=-1.0)
        grad_shift = grad_matrix.diagonal().sum() if ctx.needs_input_grad[1] else None
        return grad_matrix, grad_shift, None


def with_inverse_gradient(matrix: Tensor, shift: Tensor, inverse: Tensor) -> Tensor:
    """`inverse`, already known to be `(matrix + shift I)^-1`, with its derivatives of every order."""
    return cast(Tensor, _KnownInverse.apply(matrix, shift, inverse))  # type: ignore[no-untyped-call]
