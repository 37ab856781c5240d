"""The operations that change each value by itself, compare values, or make tensors from the shape of another."""

from __future__ import annotations

from ._operation import Operation, Value


def _row(name: str, *spellings: str, does: tuple[Value, ...] = (), **more: object) -> Operation:
    return Operation(name, spellings, values=frozenset(does), **more)  # type: ignore[arg-type]


ACTIVATIONS = (
    _row("sigmoid", "Sigmoid", does=("squashes", "activates")),
    _row("tanh", "Tanh", does=("squashes", "activates")),
    _row("softplus", "Softplus", does=("squashes", "activates")),
    _row("hardsigmoid", "Hardsigmoid", does=("squashes",)),
    _row("logsigmoid", "LogSigmoid", does=("squashes",)),
    _row("hardtanh", "Hardtanh", does=("squashes",)),
    _row("relu6", "ReLU6", does=("squashes",)),
    _row("relu", "ReLU", does=("activates",)),
    _row("gelu", "GELU", does=("activates",)),
    _row("elu", "ELU", does=("activates",)),
    _row("silu", "SiLU", does=("activates",)),
    _row("leaky_relu", "LeakyReLU", does=("activates",)),
    _row("exp", does=("activates",)),
)

ARITHMETIC = (
    _row("neg", "__neg__", "negative", does=("scales",)),
    _row("clamp", "clip", does=("floors", "normalises", "ids")),
    _row("clamp_min", does=("floors", "normalises")),
    _row("sqrt", does=("normalises",)),
    _row("rsqrt", does=("normalises",)),
    _row("square", does=("normalises",)),
    _row("cos", does=("rotary",)),
    _row("sin", does=("rotary",)),
    _row("abs", "__abs__", "absolute", does=("ids",)),
    _row("bitwise_not", "__invert__", "invert", does=("negates",)),
    _row("bitwise_and", "__and__", "__iand__", "__rand__", does=("ids",)),
    _row("bitwise_or", "__or__", "__ior__", "__ror__", does=("ids",)),
    _row("bitwise_xor", "__xor__", "__ixor__", "__rxor__", does=("ids",)),
    _row("bitwise_left_shift", "__lshift__", "__ilshift__", does=("ids",)),
    _row("bitwise_right_shift", "__rshift__", "__irshift__", does=("ids",)),
)

#: Their results describe, compare or only take the shape of their operands: the data stops here.
COMPARISONS = (
    _row("eq", "__eq__", does=("equal",), carries="nothing"),
    _row("ne", "__ne__", "not_equal", does=("unequal",), carries="nothing"),
    _row("lt", "__lt__", "less", does=("less",), carries="nothing"),
    _row("le", "__le__", "less_equal", does=("less",), carries="nothing"),
    _row("gt", "__gt__", "greater", does=("greater",), carries="nothing"),
    _row("ge", "__ge__", "greater_equal", does=("greater",), carries="nothing"),
    _row("logical_not", does=("negates",), carries="nothing"),
    *(
        _row(name, carries="nothing")
        for name in (
            "isnan", "isinf", "isfinite", "logical_and", "logical_or", "logical_xor", "nonzero", "isin",
            "histc", "bincount", "isclose", "sign", "signbit",
        )
    ),
)  # fmt: skip

NEW = (
    *(
        _row(name, carries="nothing")
        for name in (
            "ones_like", "zeros_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
            "bernoulli", "new_ones", "new_empty", "new_full", "new_tensor", "new",
        )
    ),
    _row("new_zeros", does=("ids",), carries="nothing"),
)  # fmt: skip

ROWS = (*ACTIVATIONS, *ARITHMETIC, *COMPARISONS, *NEW)
