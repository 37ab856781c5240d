"""The ranges of values: which operations have results within one, ask for arguments within one, or leave it."""

from __future__ import annotations

#: Results that are never negative, or lie between bounds.
BOUNDED = frozenset({
    "exp", "exp2", "softplus", "Softplus", "sigmoid", "Sigmoid", "hardsigmoid", "Hardsigmoid", "softmax", "Softmax",
    "square", "abs", "var", "std", "norm", "vector_norm", "relu", "ReLU", "relu6", "ReLU6", "clamp", "clamp_min",
    "tanh", "Tanh", "cosh",
})  # fmt: skip
#: Operations that ask for an argument within a range.
ROOTS = frozenset({
    "sqrt", "rsqrt", "log", "log2", "log10", "log1p", "logit", "acos", "asin", "atanh", "acosh", "lgamma", "digamma",
    "pow",
})  # fmt: skip
#: What makes a positive value a negative one.
TURNS = frozenset({"neg", "sub", "rsub"})
#: Behind these, whose rows do not say so, a value has its range still, or one that follows from it.
NAMED = frozenset({
    "sum", "mean", "nansum", "nanmean", "amax", "amin", "prod", "cumsum", "cumprod", "reciprocal", "sqrt", "rsqrt",
    "rdiv",
})  # fmt: skip
#: The one among the roots that takes any number, for some exponents.
POWER = "pow"
