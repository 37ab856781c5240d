"""The operations that join several operands: concatenation, sums, products, attention, scatters, losses."""

from __future__ import annotations

from ._operation import Operation, Value


def _values(*values: Value) -> frozenset[Value]:
    return frozenset(values)


CONCATS = (
    Operation("cat", ("concat", "concatenate"), "concat", "cat", values=_values("rotary", "ids")),
    Operation("stack", family="concat", axes="stack", values=_values("rotary")),
    Operation("hstack", family="concat", axes="hstack"),
    Operation("column_stack", family="concat", axes="hstack"),
    Operation("vstack", family="concat", axes="vstack"),
    Operation("dstack", family="concat", axes="dstack"),
)

SUMS = (
    Operation("add", ("__add__", "__radd__", "__iadd__"), "sum", values=_values("shifts", "adds", "floors", "ids")),
    Operation("sub", ("subtract", "__sub__", "__isub__"), "sum", values=_values("shifts", "ids")),
    Operation("rsub", ("__rsub__",), "sum", values=_values("shifts", "negates", "ids")),
    Operation("lerp", family="sum", weight=2),
    Operation("where", family="sum", values=_values("ids"), mask={0: "choice"}),
    Operation("maximum", family="sum", values=_values("floors")),
    *(Operation(name, family="sum") for name in ("minimum", "fmax", "fmin", "logaddexp", "hypot", "dist")),
    Operation("max", family="sum", axes="reduce", values=_values("floors")),
    Operation("min", family="sum", axes="reduce"),
)

PRODUCTS = (
    Operation("mul", ("multiply", "__mul__", "__rmul__", "__imul__"), "product", values=_values("scales", "ids")),
    Operation(
        "div",
        ("true_divide", "divide", "__truediv__", "__itruediv__", "__div__", "__idiv__"),
        "product",
        values=_values("scales", "divides"),
    ),
    Operation("rdiv", ("__rtruediv__", "__rdiv__"), "product"),
    Operation("pow", ("__pow__", "__ipow__"), "product", values=_values("normalises")),
    Operation("rpow", ("__rpow__",), "product"),
    Operation("floor_divide", ("__floordiv__", "__ifloordiv__"), "product", values=_values("ids")),
    Operation("fmod", family="product", values=_values("ids")),
    Operation("remainder", ("__mod__", "__imod__"), "product", values=_values("ids")),
    Operation("addcmul", family="product"),
    Operation("addcdiv", family="product"),
    Operation("atan2", family="product"),
    Operation("cross", family="product"),
)

MATMULS = (
    Operation("matmul", ("__matmul__", "__imatmul__"), "matmul", product="matmul"),
    *(Operation(name, family="matmul", product="matmul") for name in ("bmm", "mm", "mv", "dot", "vdot")),
    Operation("rmatmul", ("__rmatmul__",), "matmul", product="rmatmul"),
    *(Operation(name, family="matmul", product="added") for name in ("baddbmm", "addmm", "addbmm", "addmv")),
    Operation("outer", ("ger",), "matmul", product="outer"),
    Operation("inner", family="matmul", product="inner"),
    Operation("einsum", family="matmul", product="einsum"),
    *(Operation(name, family="matmul") for name in ("tensordot", "chain_matmul", "multi_dot", "kron")),
    Operation(
        "linear",
        ("Linear", "NonDynamicallyQuantizableLinear", "LazyLinear"),
        "matmul",
        "last",
        channels="last",
        product="linear",
    ),
    *(
        Operation(name, family="matmul", axes="convolution", channels="first")
        for name in ("conv1d", "conv2d", "conv3d")
    ),
    Operation(
        "bilinear", ("Bilinear",), "bilinear", "last", channels="last", arguments=("input1", "input2")
    ),
)  # fmt: skip

ATTENTIONS = (
    Operation(
        "scaled_dot_product_attention", (), "attention", "attention", default=0, channels="last", content=3,
        mask={3: "in"},
    ),
    Operation(
        "MultiheadAttention", (), "attention", "attention", default=1, channels="last", content=3,
        key_mask=("key_padding_mask", 1), arguments=("query", "key", "value"),
    ),
    Operation(
        "TransformerDecoderLayer", (), "attention", "attention", default=1, channels="last", adds_query=True,
        key_mask=("memory_key_padding_mask", 1), arguments=("tgt", "memory"),
    ),
    Operation(
        "TransformerDecoder", (), "attention", "attention", default=1, channels="last", adds_query=True,
        key_mask=("memory_key_padding_mask", 1), arguments=("tgt", "memory"),
    ),
    Operation(
        "Transformer", (), "attention", "attention", default=1, channels="last", query=1, adds_query=True,
        key_mask=("src_key_padding_mask", 0), arguments=("src", "tgt"),
    ),
    *(
        Operation(name, (), "attention", "attention", default=1, channels="last")
        for name in ("multi_head_attention_forward", "TransformerEncoderLayer", "TransformerEncoder")
    ),
)  # fmt: skip

SCATTERS = (
    Operation("setitem", ("__setitem__",), "scatter", values=_values("puts"), mask={1: "out"}, source=2),
    Operation("scatter", family="scatter", values=_values("puts"), source=3),
    *(
        Operation(name, family="scatter", values=_values("puts"))
        for name in ("masked_scatter", "index_put", "index_copy", "slice_scatter", "select_scatter")
    ),
    *(
        Operation(name, family="scatter")
        for name in ("scatter_add", "scatter_reduce", "index_add", "copy", "diagonal_scatter")
    ),
    Operation("put", family="scatter", axes="opaque"),
    Operation("index_fill", family="scatter", carries="first"),
)

SIMILARITIES = (
    Operation("cosine_similarity", ("CosineSimilarity",), "similarity"),
    Operation("cdist", family="similarity", product="cdist"),
    Operation("pairwise_distance", ("PairwiseDistance",), "similarity"),
    Operation("pdist", family="similarity"),
)

LOSSES = (
    *(
        Operation(name, family="loss")
        for name in ("cross_entropy", "kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits")
    ),
)

ROWS = (*CONCATS, *SUMS, *PRODUCTS, *MATMULS, *ATTENTIONS, *SCATTERS, *SIMILARITIES, *LOSSES)
