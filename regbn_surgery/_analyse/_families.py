"""Which torch calls join tensors in which way. Everything that depends on a function's name stands here."""

from __future__ import annotations

from typing import Literal

from .._capture import Op
from ._axes import ATTENTIONS

Family = Literal[
    "concat", "sum", "product", "matmul", "bilinear", "attention", "scatter", "similarity", "loss", "other"
]

CONCATS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"})
SUMS = frozenset({
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "subtract", "__sub__", "__rsub__", "__isub__",
    "rsub", "lerp", "lerp_", "where", "maximum", "minimum", "fmax", "fmin", "max", "min", "logaddexp", "hypot", "dist",
})  # fmt: skip
PRODUCTS = frozenset({
    "mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__", "div", "div_", "true_divide", "divide",
    "__truediv__", "__rtruediv__", "__rdiv__", "__itruediv__", "__idiv__", "pow", "pow_", "__pow__", "__rpow__",
    "addcmul", "addcdiv", "addcmul_", "floor_divide", "atan2", "fmod", "remainder", "cross",
})  # fmt: skip
MATMULS = frozenset({
    "matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "dot", "vdot", "inner", "outer", "ger", "einsum",
    "baddbmm", "addmm", "addbmm", "addmv", "tensordot", "linear", "chain_matmul", "multi_dot", "kron", "conv1d",
    "conv2d", "conv3d",
})  # fmt: skip
BILINEARS = frozenset({"bilinear", "Bilinear"})
SCATTERS = frozenset({
    "masked_scatter", "masked_scatter_", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce",
    "scatter_reduce_", "index_put", "index_put_", "index_copy", "index_copy_", "index_add", "index_add_",
    "__setitem__", "copy_", "slice_scatter", "select_scatter", "diagonal_scatter", "put_", "index_fill", "index_fill_",
})  # fmt: skip
SIMILARITIES = frozenset({
    "cosine_similarity", "CosineSimilarity", "cdist", "pairwise_distance", "PairwiseDistance", "pdist",
})  # fmt: skip
LOSSES = frozenset({"cross_entropy", "kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits"})
EMBEDDINGS = frozenset({"embedding", "Embedding", "embedding_bag", "EmbeddingBag"})
SQUASHES = frozenset({
    "sigmoid", "Sigmoid", "tanh", "Tanh", "softmax", "Softmax", "hardsigmoid", "Hardsigmoid", "logsigmoid", "sigmoid_",
    "tanh_", "softplus", "Softplus", "hardtanh", "Hardtanh", "log_softmax", "LogSoftmax", "relu6", "ReLU6",
})  # fmt: skip

#: Results that describe, compare or only take the shape of their operands: the data stops here.
DROPS = frozenset({
    "eq", "ne", "lt", "gt", "le", "ge", "__eq__", "__ne__", "__lt__", "__gt__", "__le__", "__ge__", "isnan", "isinf",
    "isfinite", "logical_and", "logical_or", "logical_not", "logical_xor", "argmax", "argmin", "argsort", "nonzero",
    "any", "all", "isin", "searchsorted", "bucketize", "ones_like", "zeros_like", "empty_like", "full_like",
    "rand_like", "randn_like", "randint_like", "bernoulli", "new_zeros", "new_ones", "new_empty", "new_full",
    "new_tensor", "new", "histc", "bincount", "isclose", "allclose", "equal", "sign", "signbit", "size",
})  # fmt: skip
#: Only the first operand's data reaches the result; the others lend a shape, a type or an index.
FIRST_ONLY = frozenset({
    "type_as", "expand_as", "view_as", "reshape_as", "to", "resize_as_", "type", "gather", "take",
    "take_along_dim", "index_select", "__getitem__", "masked_select", "masked_fill", "masked_fill_", "masked_fill__",
    "repeat_interleave", "index_fill", "index_fill_", "pad_packed_sequence", "pack_padded_sequence", "grid_sample",
    "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
})  # fmt: skip
#: Of these, the ones that are an embedding written by hand where the first operand is a table: the ids carry the data.
LOOKUPS = frozenset({"__getitem__", "index_select", "gather", "take", "take_along_dim"})


def family(op: Op) -> Family:
    name = op.name
    if name in CONCATS:
        return "concat"
    if name in SUMS:
        return "sum"
    if name in PRODUCTS:
        return "product"
    if name in BILINEARS:
        return "bilinear"
    if name in MATMULS:
        return "matmul"
    if name in ATTENTIONS:
        return "attention"
    if name in SCATTERS:
        return "scatter"
    if name in SIMILARITIES:
        return "similarity"
    module = getattr(op.target, "__module__", "") or ""
    if name in LOSSES or name.endswith(("_loss", "Loss")) or module == "torch.nn.modules.loss":
        return "loss"
    return "other"
