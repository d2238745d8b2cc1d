"""What each operator of torch is in a `Graph`; names and arguments are those of torch.ops.aten.

A handler takes the tracer, the path of the layer, the shape of the result, and the operator's arguments by name. It may
ask for `name`, the operator's own.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asrkit.compress.codegen import views
from asrkit.compress.codegen.graph import SCALE_AND_SHIFT, Expression, Op
from asrkit.compress.codegen.views import View
from asrkit.errors import InputError

Shape = Sequence[int]
A, B, C = (("x", i) for i in range(3))
SAME = {"clone", "contiguous", "detach", "alias", "dropout", "feature_dropout", "to", "_to_copy", "lift_fresh_copy"}
HARD_SIGMOID = ("min", ("max", ("add", ("mul", A, 1 / 6), 0.5), 0.0), 1.0)
TANH_OF_GELU = ("tanh", ("mul", ("mul", A, math.sqrt(2 / math.pi)), ("add", 1.0, ("mul", 0.044715, ("mul", A, A)))))
ELEMENTWISE: dict[str, Expression] = {
    "relu": ("max", A, 0.0),
    "relu6": ("min", ("max", A, 0.0), 6.0),
    "sigmoid": ("sigmoid", A),
    "silu": ("silu", A),
    "tanh": ("tanh", A),
    "exp": ("exp", A),
    "log": ("log", A),
    "log_sigmoid": ("sub", ("min", A, 0.0), ("log", ("add", 1.0, ("exp", ("min", A, ("neg", A)))))),
    "erf": ("erf", A),
    "sqrt": ("sqrt", A),
    "rsqrt": ("div", 1.0, ("sqrt", A)),
    "reciprocal": ("div", 1.0, A),
    "neg": ("neg", A),
    "abs": ("max", A, ("neg", A)),
    "hardsigmoid": HARD_SIGMOID,
    "hardswish": ("mul", A, HARD_SIGMOID),
    "logical_not": ("eq", A, 0.0),
    "bitwise_not": ("eq", A, 0.0),
    "mul": ("mul", A, B),
    "div": ("div", A, B),
    "maximum": ("max", A, B),
    "minimum": ("min", A, B),
    "logical_and": ("ne", ("mul", A, B), 0.0),
    "bitwise_and": ("mul", A, B),
    "logical_or": ("max", ("ne", A, 0.0), ("ne", B, 0.0)),
    "bitwise_or": ("max", A, B),
    "__and__": ("mul", A, B),
    "__or__": ("max", A, B),
    **{name: (name, A, B) for name in ("ge", "gt", "le", "lt", "eq", "ne")},
}
OPERATORS: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable:
    def note(function: Callable) -> Callable:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return note


# --- element by element


@handles(*ELEMENTWISE)
def _elementwise(t, path, shape, x, other=None, rounding_mode=None, *, name, **_):
    if rounding_mode:
        raise InputError(f"{path}: division that rounds is not known to the compiler")
    whole = any(isinstance(value, Op) and value not in t.truths for value in (x, other))
    if whole and name.startswith(("bitwise", "__")):
        raise InputError(f"{path}: operator '{name}' of whole numbers is unknown to the compiler")
    return t.map(ELEMENTWISE[name], [x] if other is None else [x, other], shape, path)


@handles("add", "sub")
def _add(t, path, shape, x, other, alpha=1, *, name):
    return t.map((name, A, B if alpha == 1 else ("mul", B, float(alpha))), [x, other], shape, path)


@handles("rsub")
def _rsub(t, path, shape, x, other, alpha=1, **_):
    return t.map(("sub", B, ("mul", A, float(alpha))), [x, other], shape, path)


@handles("addcmul")
def _addcmul(t, path, shape, x, tensor1, tensor2, value=1, **_):
    return t.map(("add", A, ("mul", ("mul", B, C), float(value))), [x, tensor1, tensor2], shape, path)


@handles("where")
def _where(t, path, shape, condition, x, other, **_):
    return t.map(("where", A, B, C), [condition, x, other], shape, path)


@handles("masked_fill")
def _masked_fill(t, path, shape, x, mask, value, **_):
    return t.map(("where", A, B, C), [mask, value, x], shape, path)


@handles("leaky_relu")
def _leaky_relu(t, path, shape, x, negative_slope=0.01, **_):
    return t.map(("where", ("gt", A, 0.0), A, ("mul", A, float(negative_slope))), [x], shape, path)


@handles("prelu")
def _prelu(t, path, shape, x, weight, **_):
    slope = weight.reshape(-1, *[1] * (len(shape) - 2))
    return t.map(("where", ("gt", A, 0.0), A, ("mul", A, B)), [x, slope], shape, path)


@handles("elu")
def _elu(t, path, shape, x, alpha=1.0, **_):
    return t.map(("where", ("gt", A, 0.0), A, ("mul", float(alpha), ("sub", ("exp", A), 1.0))), [x], shape, path)


@handles("gelu")
def _gelu(t, path, shape, x, approximate="none", **_):
    inside = TANH_OF_GELU if approximate == "tanh" else ("erf", ("mul", A, math.sqrt(0.5)))
    return t.map(("mul", ("mul", A, 0.5), ("add", 1.0, inside)), [x], shape, path)


@handles("clamp", "hardtanh")
def _clamp(t, path, shape, x, min=None, max=None, min_val=None, max_val=None, **_):
    low, high = (min_val if min is None else min), (max_val if max is None else max)
    expression: Expression = A if low is None else ("max", A, float(low))
    return t.map(expression if high is None else ("min", expression, float(high)), [x], shape, path)


@handles("pow")
def _pow(t, path, shape, x, exponent, **_):
    powers = {2: ("mul", A, A), 3: ("mul", ("mul", A, A), A), 0.5: ("sqrt", A), -0.5: ELEMENTWISE["rsqrt"]}
    if not isinstance(exponent, (int, float)) or exponent not in powers:
        raise InputError(f"{path}: a power of {exponent} is none that the compiler knows")
    return t.map(powers[exponent], [x], shape, path)


@handles("batch_norm")
def _batch_norm(t, path, shape, x, weight, bias, running_mean, running_var, eps, **_):
    scale = (running_var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - running_mean.double() * scale
    one_each = [-1, *[1] * (len(shape) - 2)]
    values = [x, scale.float().reshape(one_each), shift.float().reshape(one_each)]
    return t.map(SCALE_AND_SHIFT, values, shape, path)


@handles("_native_batch_norm_legit_no_training")
def _first_of_batch_norm(t, path, shape, x, **arguments):
    return [_batch_norm(t, path, x.shape, x, **arguments)]


# --- products


@handles("linear")
def _linear(t, path, shape, x, weight, bias=None, **_):
    _known(path, weight, bias)
    bias = torch.zeros(len(weight)) if bias is None else bias
    return t.add("linear", [x], shape, path, weight=weight, bias=bias)


@handles("conv1d", "conv2d")
def _conv(t, path, shape, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    _known(path, weight, bias)
    _one_picture(path, x, weight.dim())
    if padding in ("same", "valid"):
        dilations = dilation if isinstance(dilation, (list, tuple)) else [dilation] * (weight.dim() - 2)
        padding = [
            d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(weight.shape[2:], dilations, strict=True)
        ]
        if any((k - 1) * d % 2 for k, d in zip(weight.shape[2:], dilations, strict=True)) and sum(padding):
            raise InputError(f"{path}: padding 'same' of a kernel of even length is not known to the compiler")
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    pairs = {
        name: _pair(value, neutral=0 if name == "padding" else 1, dims=weight.dim() - 2)
        for name, value in options.items()
    }
    bias = torch.zeros(len(weight)) if bias is None else bias
    if weight.dim() == 3:
        weight = weight[:, :, None]
    return t.add("conv", [x], shape, path, weight=weight, bias=bias, groups=groups, **pairs)


def _known(path: str, *values: Any) -> None:
    if any(isinstance(value, Op) for value in values):
        raise InputError(f"{path}: weights that depend on the input are not known to the compiler")


def _one_picture(path: str, x: Op, rank: int) -> None:
    if len(x.shape) != rank or x.shape[0] != 1:
        raise InputError(f"{path}: an input of shape {x.shape}: the compiler wants a batch of 1")


def _pair(value: int | Sequence[int], neutral: int, dims: int = 2) -> tuple[int, int]:
    """Return a setting of a kernel for height and width."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if dims == 1:
        return neutral, values[0]
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


@handles("matmul", "bmm", "mm")
def _matmul(t, path, shape, x, other=None, mat2=None, **_):
    a, b = t.tensor(x, path), t.tensor(mat2 if other is None else other, path)
    if b.kind == "constant" and len(b.shape) == 2:
        weight = torch.from_numpy(b.attrs["array"].T.copy())
        return t.add("linear", [a], shape, path, weight=weight, bias=torch.zeros(len(weight)))
    if min(len(a.shape), len(b.shape)) < 2:
        raise InputError(f"{path}: a product with a vector is not known to the compiler")
    return t.add("matmul", [a, b], shape, path)


@handles("addmm")
def _addmm(t, path, shape, x, mat1, mat2, beta=1, alpha=1):
    _known(path, x, mat2)
    return t.add("linear", [mat1], shape, path, weight=alpha * mat2.T, bias=(beta * x).expand(mat2.shape[1]))


@handles("scaled_dot_product_attention")
def _attention(t, path, shape, query, key, value, attn_mask=None, scale=None, is_causal=False, enable_gqa=False, **_):
    if is_causal or enable_gqa:
        raise InputError(
            f"{path}: attention that is causal or shares keys is not known to the compiler: give it a mask"
        )
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    *batch, frames, dim = key.shape
    keys = t.add("view", [key], (*batch, dim, frames), path, how=partial(_permute, order=_swapped(len(shape))))
    scores = (*query.shape[:-1], frames)
    found = t.add("matmul", [t.map(("mul", A, float(factor)), [query], query.shape, path), keys], scores, path)
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -1e9)
    if attn_mask in t.truths:
        attn_mask = t.map(("where", A, 0.0, -1e9), [attn_mask], attn_mask.shape, path)
    if attn_mask is not None:
        found = t.map(("add", A, B), [found, attn_mask], scores, path)
    weights = t.add("softmax", [found], scores, path, dim=len(scores) - 1)
    return t.add("matmul", [weights, value], shape, path)


# --- over several elements


@handles("layer_norm")
def _layer_norm(t, path, shape, x, normalized_shape, weight=None, bias=None, eps=1e-5, **_):
    if len(normalized_shape) != 1:
        raise InputError(f"{path}: a layer norm over several dimensions is not known to the compiler")
    dim = shape[-1]
    weight = torch.ones(dim) if weight is None else weight
    bias = torch.zeros(dim) if bias is None else bias
    return t.add("layer_norm", [x], shape, path, weight=weight, bias=bias, epsilon=float(eps))


@handles("softmax")
def _softmax(t, path, shape, x, dim, **_):
    return t.add("softmax", [x], shape, path, dim=dim % len(shape))


@handles("log_softmax")
def _log_softmax(t, path, shape, x, dim, **_):
    top = _reduce(t, path, (), x, dim, keepdim=True, name="amax")
    below = t.map(("sub", A, B), [x, top], shape, path)
    total = _reduce(t, path, (), t.map(("exp", A), [below], shape, path), dim, keepdim=True, name="sum")
    return t.map(("sub", A, ("log", B)), [below, total], shape, path)


@handles("mean", "sum", "amax")
def _reduce(t, path, shape, x, dim=None, keepdim=False, *, name, **_):
    rank = len(x.shape)
    dims = range(rank) if not dim and dim != 0 else [dim] if isinstance(dim, int) else dim
    dims = tuple(sorted(d % rank for d in dims))
    kept = tuple(1 if i in dims else n for i, n in enumerate(x.shape))
    found = t.add("reduce", [x], kept, path, dims=dims, how={"amax": "max"}.get(name, name))
    return found if keepdim else _view(t, path, shape, found)


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d")
def _adaptive(t, path, shape, x, output_size, *, name, **_):
    _one_picture(path, x, 4 if name.endswith("2d") else 3)
    sizes = x.shape[2:]
    if all(n == 1 for n in shape[2:]):
        return t.add("reduce", [x], shape, path, dims=tuple(range(2, len(shape))), how="mean")
    if any(n % out for n, out in zip(sizes, shape[2:], strict=True)):
        raise InputError(
            f"{path}: adaptive pooling of {tuple(sizes)} to {tuple(shape[2:])} is not known to the compiler"
        )
    kernel = [n // out for n, out in zip(sizes, shape[2:], strict=True)]
    return _pool(t, path, shape, x, kernel, name=name)


@handles("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d")
def _pool(
    t,
    path,
    shape,
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    *,
    name,
    **_,
):
    dims = 2 if name.endswith("2d") else 1
    _one_picture(path, x, 2 + dims)
    if ceil_mode or divisor_override or _pair(dilation, 1, dims) != (1, 1):
        raise InputError(f"{path}: pooling with ceil_mode, a dilation or a divisor is not known to the compiler")
    kernel = _pair(kernel_size, 1, dims)
    return t.add(
        "pool",
        [x],
        shape,
        path,
        how="max" if "max" in name else "mean",
        kernel=kernel,
        stride=_pair(stride, 1, dims) if stride else kernel,
        padding=_pair(padding, 0, dims),
        count_padding=count_include_pad,
    )


@handles("embedding")
def _embedding(t, path, shape, weight, indices, **_):
    _known(path, weight)
    return t.add("lookup", [indices], shape, path, weight=weight)


@handles("cat")
def _cat(t, path, shape, tensors, dim=0):
    return t.add("concat", [t.tensor(x, path) for x in tensors], shape, path, dim=dim % len(shape))


@handles("stack")
def _stack(t, path, shape, tensors, dim=0):
    dim %= len(shape)
    parts = [t.tensor(x, path) for x in tensors]
    return t.add(
        "concat", [_view(t, path, (*x.shape[:dim], 1, *x.shape[dim:]), x) for x in parts], shape, path, dim=dim
    )


@handles("pad")
def _pad(t, path, shape, x, pad, mode="constant", value=None):
    if mode != "constant":
        raise InputError(f"{path}: padding of mode '{mode}' is not known to the compiler")
    for i in range(len(pad) // 2):
        dim = len(shape) - 1 - i
        before, after = pad[2 * i : 2 * i + 2]
        if min(before, after) < 0:
            x = _sliced(t, path, x, dim, max(0, -before), x.shape[dim] - max(0, -after))
        parts = [x]
        for place, n in ((0, before), (len(parts), after)):
            if n > 0:
                size = (*x.shape[:dim], n, *x.shape[dim + 1 :])
                parts.insert(place if place == 0 else len(parts), t.tensor(torch.full(size, float(value or 0)), path))
        if len(parts) > 1:
            total = (*x.shape[:dim], sum(part.shape[dim] for part in parts), *x.shape[dim + 1 :])
            x = t.add("concat", parts, total, path, dim=dim)
    return x


# --- where elements lie


def _permute(view: View, order: Sequence[int]) -> View:
    return views.permuted(view, order)


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


@handles("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze")
def _reshape(t, path, shape, x, **_):
    return _view(t, path, shape, x)


def _view(t, path: str, shape: Shape, x: Op) -> Op:
    shape = tuple(int(n) for n in shape)
    return t.add("view", [x], shape, path, how=partial(views.reshaped, shape=shape))


@handles("permute", "transpose", "t")
def _permuted(t, path, shape, x, dims=None, dim0=0, dim1=1, **_):
    order = list(range(len(shape)))
    if dims is not None:
        order = [d % len(shape) for d in dims]
    else:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return t.add("view", [x], shape, path, how=partial(_permute, order=order))


@handles("expand")
def _expand(t, path, shape, x, **_):
    return t.add("view", [x], shape, path, how=partial(views.expanded, shape=tuple(shape)))


@handles("repeat")
def _repeat(t, path, shape, x, repeats):
    if len(repeats) != len(x.shape):
        x = _view(t, path, (*[1] * (len(repeats) - len(x.shape)), *x.shape), x)
    for dim, n in enumerate(repeats):
        if n > 1:
            x = t.add("concat", [x] * n, (*x.shape[:dim], n * x.shape[dim], *x.shape[dim + 1 :]), path, dim=dim)
    return x


def _sliced(t, path: str, x: Op, dim: int, start: int, stop: int, step: int = 1) -> Op:
    shape = (*x.shape[:dim], -(-(stop - start) // step), *x.shape[dim + 1 :])
    how = partial(views.sliced, dim=dim, start=start, stop=stop, step=step)
    return t.add("view", [x], shape, path, how=how)


@handles("slice")
def _slice(t, path, shape, x, dim=0, start=None, end=None, step=1):
    dim %= len(shape)
    start, stop, step = slice(start, end, step).indices(x.shape[dim])
    return _sliced(t, path, x, dim, start, stop, step)


@handles("select")
def _select(t, path, shape, x, dim, index):
    dim %= len(x.shape)
    index %= x.shape[dim]
    return _view(t, path, shape, _sliced(t, path, x, dim, index, index + 1))


@handles("split", "split_with_sizes", "unbind")
def _split(t, path, shape, x, dim=0, split_size=None, split_sizes=None, *, name):
    dim %= len(x.shape)
    size = x.shape[dim]
    if name == "unbind":
        return [_select(t, path, (*x.shape[:dim], *x.shape[dim + 1 :]), x, dim, i) for i in range(size)]
    sizes = split_size if split_sizes is None else split_sizes
    if not isinstance(sizes, (list, tuple)):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_sliced(t, path, x, dim, start, start + n) for start, n in zip(starts, sizes, strict=True)]


@handles("glu")
def _glu(t, path, shape, x, dim=-1):
    dim %= len(shape)
    halves = [_sliced(t, path, x, dim, start, start + shape[dim]) for start in (0, shape[dim])]
    return t.map(("mul", A, ("sigmoid", B)), halves, shape, path)


@handles("pixel_shuffle")
def _pixel_shuffle(t, path, shape, x, upscale_factor):
    r, (n, c, h, w) = upscale_factor, shape
    apart = _view(t, path, (n, c, r, r, h // r, w // r), x)
    order = [0, 1, 4, 2, 5, 3]
    mixed = t.add("view", [apart], tuple(apart.shape[i] for i in order), path, how=partial(_permute, order=order))
    return _view(t, path, shape, mixed)


@handles("pixel_unshuffle")
def _pixel_unshuffle(t, path, shape, x, downscale_factor):
    r, (n, c, h, w) = downscale_factor, x.shape
    apart = _view(t, path, (n, c, h // r, r, w // r, r), x)
    order = [0, 1, 3, 5, 2, 4]
    mixed = t.add("view", [apart], tuple(apart.shape[i] for i in order), path, how=partial(_permute, order=order))
    return _view(t, path, shape, mixed)


@handles("upsample_nearest1d", "upsample_nearest2d")
def _upsample_nearest(t, path, shape, x, **_):
    for dim in range(2, len(shape)):
        factor = shape[dim] // x.shape[dim]
        if shape[dim] != factor * x.shape[dim]:
            raise InputError(f"{path}: enlarging {x.shape[dim]} to {shape[dim]} is not known to the compiler")
        if factor > 1:
            apart = _view(t, path, (*x.shape[: dim + 1], 1, *x.shape[dim + 1 :]), x)
            wide = (*x.shape[: dim + 1], factor, *x.shape[dim + 1 :])
            apart = t.add("view", [apart], wide, path, how=partial(views.expanded, shape=wide))
            x = _view(t, path, (*x.shape[:dim], shape[dim], *x.shape[dim + 1 :]), apart)
    return x
