"""Second derivatives of common layers by formula, where torch puts them together from many small operations.

A product with the Hessian differentiates the backward pass of every layer. For GELU, SiLU and LayerNorm torch takes
tens of elementwise operations for that, all repeated for every product; here what does not depend on the vector is
worked out once, as the graph is built. Linear layers take the six products of matrices that they must, without the sums
between them.

Each layer y = f(x) becomes two nodes of autograd's graph, f and its backward pass. The second depends on x, so that a
product comes back to f by two ways: as the cotangent of y and as that of x. f has an output that stands for x there,
which lets it add up both in one step and keeps no copy of x. That cotangent is known to nobody else and is added to in
place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_FAR = 100.0
"""Where GELU's derivatives are those at infinity, in float64 too; no power of x overflows there."""
_FEW = 2**14
"""Entries of x below which a linear layer's own nodes cost more than the sums that they save."""

ONCE_MORE = "a product with the Hessian cannot be differentiated again"
"""What is said where a model asks for more derivatives than these layers have: torch's own have them."""
Derivatives = Callable[[Tensor], tuple[Tensor, Tensor]]
"""First and second derivative of a function of numbers, at each of a tensor's."""


class ClosedForms(TorchFunctionMode):
    """GELU, SiLU, LayerNorm and linear layers with torch's values and derivatives, whose second derivatives cost less.

    Of what is computed under it gradients with a graph can be taken once, and differentiated once more, not twice.
    Tensors of other kinds than dense float32 and float64 ones, frozen linear layers, and what is differentiated by
    `torch.func` or in forward mode meanwhile, keep torch's own.

    Attributes:
        differentiated: Whether autograd was seen to be asked for a gradient meanwhile, as by a loss of a network's
            derivatives in its inputs: what comes of that cannot be differentiated as often as it has to be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.differentiated = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.differentiated |= func in (torch.autograd.grad, Tensor.backward)
        form = None if torch.compiler.is_compiling() else _FORMS.get(func)  # a compiler reads nodes as it likes
        if form is None or not args or not _is_plain(args[0]):
            return func(*args, **kwargs)
        return form(*args, **kwargs)


def gelu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of :math:`x\Phi(x)`: :math:`\Phi + x\varphi` and :math:`(2 - x^2)\varphi`."""
    square = (x * x).clamp_(max=_FAR**2)
    density = (square * -0.5).exp_()
    second = square.sub_(2).mul_(density).mul_(-1 / math.sqrt(2 * math.pi))
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x), second


def tanh_gelu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of :math:`x(1 + \tanh u)/2`, :math:`u = \sqrt{2/\pi}(x + 0.044715\,x^3)`."""
    x = x.clamp(-_FAR, _FAR)
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (x + cubic * x**3))
    inner = scale * (1 + 3 * cubic * x * x)
    slope = (1 - t * t) * inner
    bend = (1 - t * t) * scale * 6 * cubic * x - 2 * t * slope * inner
    return 0.5 * (1 + t + x * slope), slope + 0.5 * x * bend


def silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of :math:`x\sigma(x)`: :math:`\sigma(1 + x(1 - \sigma))` and :math:`\sigma(1 - \sigma)(2 + x(1 - 2\sigma))`."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s)), s * (1 - s) * (2 + x * (1 - 2 * s))


class _Node(Function):
    @classmethod
    def of(cls, *inputs: Any) -> Any:
        """What it gives for its inputs, with its place in the graph."""
        return cls.apply(*inputs)  # type: ignore[no-untyped-call]


class _Activation(_Node):
    """f(x) of numbers, with f'(x) kept, and what stands for x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], derivatives: Derivatives) -> Any:
        ctx.set_materialize_grads(False)
        stands_for_x = _stand_in(x)
        first, ctx.second = derivatives(x)
        ctx.save_for_backward(stands_for_x, first)
        return function(x), stands_for_x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        g, of_x = grads
        stands_for_x, first = ctx.saved_tensors
        if _is_built(of_x):
            if ctx.second is None:
                raise RuntimeError(f"{ONCE_MORE}: a gradient with a graph was taken twice")
            second, ctx.second = ctx.second, None  # from now on the other node has what it takes of it
            of_x = None if g is None else _ActivationBackward.of(g, stands_for_x, first, second)
        elif g is not None:
            of_x = g * first if of_x is None else of_x.addcmul_(g, first)
        return of_x, None, None


class _ActivationBackward(_Node):
    """g f'(x), of g and x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, g * second)
        return g * first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        first, bent = ctx.saved_tensors
        wants_g, wants_x, *_ = ctx.needs_input_grad
        return grads[0] * first if wants_g else None, grads[0] * bent if wants_x else None, None, None


class _LayerNorm(_Node):
    r"""y = w z + b, z = (x - mean) r over the last dimension of x (..., D); z and r (..., 1) stand for x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        ctx.set_materialize_grads(False)
        values, mean, r = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        z = (x - mean).mul_(r)
        ctx.save_for_backward(weight, z, r)
        return values, z, r

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        g, of_z, of_r = grads
        weight, z, r = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:3]
        if _is_built(of_z) and _is_built(of_r):
            return (None, None, None, None) if g is None else (*_LayerNormBackward.of(g, weight, z, r, wanted), None)
        of_weight = of_bias = None
        if g is not None:
            of_weight, of_bias = _of_affine(g, z, wanted)
            scaled = g if weight is None else g * weight
            of_z = scaled if of_z is None else of_z.add_(scaled)
        of_x = None
        if of_z is not None:
            of_x = _project(of_z, z).mul_(r)
        if of_r is not None:
            factor = of_r * r * r / -z.shape[-1]
            of_x = z * factor if of_x is None else of_x.addcmul_(z, factor)
        return of_x, of_weight, of_bias, None


class _LayerNormBackward(_Node):
    r"""Gradients of LayerNorm, of its own gradient g (..., D), w (D,), z and r.

    With h = w g and :math:`Q(h) = h - \bar h - z\,\overline{hz}` they are :math:`r Q(h)`, :math:`\sum g z` and
    :math:`\sum g`. Cotangents c, a and b of the three pull back to :math:`w r Q(c) + a z + b` in g,
    :math:`\sum g\,r Q(c)` in w, :math:`a g - r(h\,\overline{cz} + c\,\overline{hz})` in z and
    :math:`\sum_D h Q(c)` in r, as Q is symmetric.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor | None, z: Tensor, r: Tensor, wanted: tuple[bool, bool]) -> Any:
        ctx.set_materialize_grads(False)
        scaled = g if weight is None else g * weight
        ctx.save_for_backward(g, weight, z, r, (scaled * z).mean(-1, keepdim=True).mul_(-r))
        return _project(scaled, z).mul_(r), *_of_affine(g, z, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        g, weight, z, r, along_h = ctx.saved_tensors
        c, a, b = grads
        wants_g, wants_weight, wants_z, wants_r, _ = ctx.needs_input_grad
        of_g = of_weight = of_z = of_r = None
        if wants_z and a is not None:
            of_z = g * a
        if c is not None:
            scaled = g if weight is None else g * weight
            projected = _project(c, z)
            if wants_r:
                of_r = (projected * scaled).sum(-1, keepdim=True)
            if wants_z:
                along_c = (c * z).mean(-1, keepdim=True).mul_(-r)
                of_z = scaled * along_c if of_z is None else of_z.addcmul_(scaled, along_c)
                of_z.addcmul_(c, along_h)
            projected.mul_(r)
            if wants_weight and weight is not None:
                of_weight = (g * projected).flatten(0, -2).sum(0)
            of_g = projected if weight is None else projected.mul_(weight)
        if a is not None:
            of_g = z * a if of_g is None else of_g.addcmul_(z, a)
        if b is not None:
            of_g = b.expand_as(g) if of_g is None else of_g.add_(b)
        return of_g if wants_g else None, of_weight, of_z, of_r, None


class _Linear(_Node):
    """y = x wᵀ + b of rows x (N, D), and what stands for x and w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        ctx.set_materialize_grads(False)
        stand_ins = _stand_in(x), _stand_in(weight)
        ctx.save_for_backward(x, weight, *stand_ins)
        return F.linear(x, weight, bias), *stand_ins

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        g, of_x, of_weight = grads
        x, weight, *stand_ins = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = wanted = ctx.needs_input_grad
        if _is_built(of_x) and _is_built(of_weight):
            if g is None:
                return None, None, None
            return _LinearBackward.of(g, *stand_ins, x.detach(), weight.detach(), wanted)
        if g is None:
            return of_x, of_weight, None
        if wants_x:
            of_x = g @ weight if of_x is None else of_x.addmm_(g, weight)
        if wants_weight:
            of_weight = g.t() @ x if of_weight is None else of_weight.addmm_(g.t(), x)
        return of_x, of_weight, g.sum(0) if wants_bias else None


class _LinearBackward(_Node):
    """Gradients of a linear layer, g w, gᵀ x and the sum of g, of its own gradient g, x and w."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x_: Tensor, weight_: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight)
        wants_x, wants_weight, wants_bias = wanted
        return g @ weight if wants_x else None, g.t() @ x if wants_weight else None, g.sum(0) if wants_bias else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        g, x, weight = ctx.saved_tensors
        c, v, b = grads
        wants_g, wants_x, wants_weight, *_ = ctx.needs_input_grad
        of_g = None
        if wants_g and v is not None:
            of_g = F.linear(x, v, b)
        if wants_g and c is not None:
            of_g = F.linear(c, weight, b) if of_g is None else of_g.addmm_(c, weight.t())
        elif wants_g and v is None and b is not None:
            of_g = b.expand_as(g)
        of_x = g @ v if wants_x and v is not None else None
        return of_g, of_x, g.t() @ c if wants_weight and c is not None else None, None, None, None


def _stand_in(x: Tensor) -> Tensor:
    """A tensor of x's shape without memory of its own."""
    return x.new_zeros(()).expand(x.shape)


def _is_built(cotangent: Tensor | None) -> bool:
    """Whether a backward pass is one whose graph is kept, rather than a product.

    Raises:
        RuntimeError: It would be the graph of a product.
    """
    if not torch.is_grad_enabled():
        return False
    if cotangent is not None:
        raise RuntimeError(ONCE_MORE)
    return True


def _project(vector: Tensor, z: Tensor) -> Tensor:
    """Q(v) = v - mean(v) - z mean(v z), over the last dimension: torch's own of z with mean 0 and r = 1."""
    ones, zeros = z.new_ones(*z.shape[:-1], 1), z.new_zeros(*z.shape[:-1], 1)
    projected: Tensor = torch.ops.aten.native_layer_norm_backward(
        vector, z, z.shape[-1:], zeros, ones, None, None, [True, False, False]
    )[0]
    return projected


def _of_affine(g: Tensor, z: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in w and b of w z + b."""
    wants_weight, wants_bias = wanted
    of_weight = (g * z).flatten(0, -2).sum(0) if wants_weight else None
    return of_weight, g.flatten(0, -2).sum(0) if wants_bias else None


def _gelu(input: Tensor, approximate: str = "none") -> Tensor:
    derivatives = tanh_gelu_derivatives if approximate == "tanh" else gelu_derivatives
    return _activation(input, lambda x: F.gelu(x, approximate=approximate), derivatives)


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    return F.silu(input, inplace=True) if inplace else _activation(input, F.silu, silu_derivatives)


def _activation(x: Tensor, function: Callable[[Tensor], Tensor], derivatives: Derivatives) -> Tensor:
    values: Tensor = _Activation.of(x, function, derivatives)[0] if x.requires_grad else function(x)
    return values


def _layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if len(normalized_shape) != 1 or input.dim() < 2 or not _fits(input, weight, bias):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    values: Tensor = _LayerNorm.of(input, weight, bias, eps)[0]
    return values


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # Of frozen weights torch keeps nothing but them.
    usual = weight.dim() == 2 and (bias is None or bias.dim() == 1)
    if input.numel() < _FEW or not weight.requires_grad or not usual or not _fits(input, weight, bias):
        return F.linear(input, weight, bias)
    rows: Tensor = _Linear.of(input.reshape(-1, input.shape[-1]), weight, bias)[0]
    return rows.view(*input.shape[:-1], len(weight))


_FORMS: dict[Any, Callable[..., Tensor]] = {
    F.gelu: _gelu,
    F.silu: _silu,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
}


def _fits(input: Tensor, *parameters: Tensor | None) -> bool:
    """Whether a layer is one of plain numbers and has a derivative."""
    parts = [input, *(part for part in parameters if part is not None)]
    return any(part.requires_grad for part in parts) and all(
        _is_plain(part) and part.dtype == input.dtype for part in parts
    )


def _is_plain(tensor: Any) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad.unpack_dual(tensor).tangent is None
    )
