"""The operations that move, cut, reduce or mix axes, and the layers that define where channels are."""

from __future__ import annotations

from ._operation import Axes, Operation, Value

_RESHAPES: frozenset[Value] = frozenset({"reshapes"})
_PERMUTES: frozenset[Value] = frozenset({"permutes"})
_CASTS: frozenset[Value] = frozenset({"casts"})
_DROPS_OUT: frozenset[Value] = frozenset({"drops_out"})
_SPLITS: frozenset[Value] = frozenset({"splits"})
_PART: frozenset[Value] = frozenset({"takes_part"})
_STRETCHES: frozenset[Value] = frozenset({"stretches"})
_NORM: frozenset[Value] = frozenset({"norm", "normalises"})


def _along(
    name: str, dim: int, default: object = -1, *spellings: str, values: frozenset[Value] = frozenset()
) -> Operation:
    return Operation(name, spellings, axes="along", dim=dim, default=default, values=values)


VIEWS = (
    Operation("view", axes="view", values=_RESHAPES),
    Operation("reshape", axes="view", values=_RESHAPES),
    Operation("flatten", ("Flatten",), axes="view", values=_RESHAPES),
    Operation("unflatten", ("Unflatten",), axes="view", values=_RESHAPES),
    Operation("squeeze", axes="view", values=_RESHAPES),
    Operation("unsqueeze", ("expand_dims",), axes="view", values=_RESHAPES),
    Operation("ravel", axes="view", values=_RESHAPES),
    Operation("view_as", ("reshape_as",), axes="view", values=_RESHAPES, carries="first"),
    Operation("contiguous", axes="view", values=_RESHAPES | _CASTS),
)

PERMUTES = (
    *(Operation(name, axes="reverse", values=_PERMUTES) for name in ("T", "H")),
    Operation("t", axes="matrix", values=_PERMUTES),
    *(Operation(name, axes="swap_last", values=_PERMUTES) for name in ("mT", "mH", "adjoint")),
    Operation("permute", axes="order", values=_PERMUTES),
    Operation("movedim", ("moveaxis",), axes="move", values=_PERMUTES),
    Operation("transpose", ("swapaxes", "swapdims"), axes="swap", values=_PERMUTES),
)

STRETCHES = (
    Operation("expand", axes="stretch", values=_STRETCHES | {"normalises"}),
    Operation("expand_as", axes="stretch", values=_STRETCHES | {"normalises"}, carries="first"),
    Operation("broadcast_to", axes="stretch", values=_STRETCHES),
    Operation("repeat", ("tile",), axes="stretch", values=frozenset({"repeats"})),
)

CASTS = (
    *(
        Operation(name, values=_CASTS)
        for name in ("float", "half", "bfloat16", "double", "clone", "detach", "cpu", "cuda")
    ),
    *(Operation(name, values=_CASTS) for name in ("requires_grad_", "data", "alias")),
    Operation("identity", ("Identity",), values=_CASTS),
    *(Operation(name, values=_CASTS, carries="first") for name in ("to", "type", "type_as")),
    *(Operation(name, values=frozenset({"integers"})) for name in ("bool", "byte", "int", "long")),
)

DROPOUTS = (
    Operation("dropout", ("Dropout",), values=_DROPS_OUT),
    *(Operation(f"dropout{n}d", (f"Dropout{n}d",), values=_DROPS_OUT) for n in (1, 2, 3)),
    Operation("alpha_dropout", ("AlphaDropout",), values=_DROPS_OUT),
    Operation("feature_alpha_dropout", ("FeatureAlphaDropout",), values=_DROPS_OUT),
    Operation("feature_dropout", values=_DROPS_OUT),
)

PARTS = (
    Operation(
        "getitem", ("__getitem__",), axes="index", carries="lookup",
        values=_PART | {"rotary", "ids"},
    ),
    Operation("select", axes="select", values=_PART),
    Operation("narrow", axes="narrow", values=_PART),
    Operation("index_select", axes="index_select", carries="lookup", values=frozenset({"looks_up"})),
    Operation("gather", axes="along", carries="lookup"),
    Operation("take_along_dim", axes="along", dim=2, default=None, carries="lookup"),
    Operation("take", axes="opaque", carries="lookup"),
    Operation("masked_select", carries="first"),
    Operation("masked_fill", carries="first", values=frozenset({"ids"}), mask={1: "out"}),
    Operation("repeat_interleave", carries="first", values=frozenset({"repeats"})),
    *(
        Operation(name, axes="split", dim=2, default=0, values=_SPLITS)
        for name in ("split", "chunk", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split")
    ),
    Operation("unbind", axes="unbind", default=0, values=_SPLITS),
    Operation("hsplit", axes="hsplit", values=_SPLITS),
    Operation("vsplit", axes="vsplit", values=_SPLITS),
)  # fmt: skip

REDUCTIONS = (
    *(
        Operation(name, axes="reduce")
        for name in ("mean", "amax", "amin", "logsumexp", "std", "var", "prod", "nanmean", "nansum", "median")
    ),
    Operation("sum", axes="reduce", values=frozenset({"normalises"})),
    *(Operation(name, axes="reduce") for name in ("argmax", "argmin")),
    *(Operation(name, axes="reduce", carries="nothing") for name in ("any", "all")),
    *(
        Operation(name, axes="reduce", dim=2, values=_NORM)
        for name in ("norm", "vector_norm", "linalg_vector_norm", "linalg_norm")
    ),
    Operation("frobenius_norm", values=frozenset({"norm"})),
)

_SQUASHES: frozenset[Value] = frozenset({"squashes"})
_BOTH: frozenset[Value] = frozenset({"squashes", "activates"})

ALONG = (
    _along("softmax", 1, "rank", "Softmax", values=_BOTH),
    _along("log_softmax", 1, "rank", "LogSoftmax", values=_SQUASHES),
    _along("softmin", 1, "rank", "Softmin"),
    _along("gumbel_softmax", 4),
    _along("glu", 1, -1, "GLU"),
    _along("normalize", 2, 1, values=frozenset({"normalises", "unit"})),
    *(_along(name, 1) for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "flip")),
    _along("msort", 1, 0),
    _along("topk", 2),
    _along("roll", 2, None),
    _along("renorm", 2),
    _along("argsort", 1),
    Operation("fliplr", axes="fixed", dim=1),
    Operation("flipud", axes="fixed", dim=0),
    Operation("channel_shuffle", ("ChannelShuffle",), axes="fixed", dim=1),
    Operation("local_response_norm", ("LocalResponseNorm", "CrossMapLRN2d"), axes="fixed", dim=1),
    Operation("Softmax2d", axes="fixed", dim=-3),
    *(
        Operation(name, axes="opaque")
        for name in ("rot90", "inverse", "matrix_exp", "matrix_power", "cholesky", "pinverse")
    ),
)

LAYERS = (
    Operation("embedding", ("Embedding",), axes="table", channels="last", values=frozenset({"looks_up"})),
    Operation("embedding_bag", ("EmbeddingBag",), axes="table", channels="last", values=frozenset({"looks_up"})),
    Operation("one_hot", values=frozenset({"looks_up"})),
    *(
        Operation(name, axes="recurrent", default=1, channels="last", values=frozenset({"recurrent"}))
        for name in ("RNN", "LSTM", "GRU")
    ),
    *(Operation(name, values=frozenset({"recurrent"})) for name in ("RNNCell", "LSTMCell", "GRUCell")),
    *(
        Operation(name, carries="first")
        for name in ("pad_packed_sequence", "pack_padded_sequence", "grid_sample", "grid_sampler", "grid_sampler_2d")
    ),
    *(Operation(name, carries="first") for name in ("grid_sampler_3d", "resize_as_")),
    Operation("RegBN", carries="own"),
    Operation("pad", axes="pad"),
    Operation("interpolate", ("upsample", "Upsample"), axes="pool"),
    Operation("layer_norm", axes="layer_norm", channels="last"),
    Operation("rms_norm", ("RMSNorm",), axes="layer_norm", channels="last"),
    Operation("batch_norm", axes="batch_norm", channels="first"),
    *(Operation(name, axes="group_norm", channels="first") for name in ("group_norm", "instance_norm")),
)

#: Families of layers that go by their names: a pattern for the name in lower case, and the row (see `operation`).
PATTERNS: tuple[tuple[str, Axes, str | None, int, object], ...] = (
    ("(?:lazy)?conv", "convolution", "first", 1, -1),
    (".*unfold", "convolution", None, 1, -1),
    (".*pool", "pool", None, 1, -1),
    (".*pad[123]d$", "pad_sides", None, 1, -1),
    (".*layernorm", "layer_norm", "last", 1, -1),
    (".*batchnorm", "batch_norm", "first", 1, -1),
    (".*(?:group|instance)norm", "group_norm", "first", 1, -1),
    ("fft_.*shift", "along", None, 1, None),
    ("fft_.*2$", "along", None, 2, (-2, -1)),
    ("fft_.*n$", "along", None, 2, None),
    ("fft_", "along", None, 2, -1),
    ("linalg_", "opaque", None, 1, -1),
)

ROWS = (*VIEWS, *PERMUTES, *STRETCHES, *CASTS, *DROPOUTS, *PARTS, *REDUCTIONS, *ALONG, *LAYERS)
