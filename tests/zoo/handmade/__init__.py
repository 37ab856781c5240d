"""Models written here, grouped by the idea with which they fuse."""

from . import (
    attention_variants,
    branches,
    containers,
    control_flow,
    cross_attention,
    gating,
    multi_level,
    tensor_products,
    torch_features,
    transformers,
    two_branch,
)

CASES = (
    *two_branch.CASES,
    *containers.CASES,
    *control_flow.CASES,
    *multi_level.CASES,
    *cross_attention.CASES,
    *branches.CASES,
    *torch_features.CASES,
    *tensor_products.CASES,
    *gating.CASES,
    *attention_variants.CASES,
    *transformers.CASES,
)
