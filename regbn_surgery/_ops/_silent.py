"""The calls that leave no operation behind: they describe a tensor, ask torch for a setting, or read a value."""

from __future__ import annotations

from ._operation import Operation

#: Methods and properties that describe a tensor.
_DESCRIBING = (
    "dim", "ndim", "ndimension", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "requires_grad",
    "grad_fn", "is_leaf", "is_mkldnn", "is_mps", "is_xpu", "is_cpu", "is_nested", "is_signed", "is_contiguous",
    "stride", "__len__", "storage_offset", "data_ptr", "_version", "__hash__", "is_same_size", "__repr__", "__format__",
    "get_device", "names", "_backward_hooks", "retain_grad", "grad", "_is_view", "untyped_storage", "is_pinned",
    "is_shared", "has_names", "is_conj", "is_neg", "is_set_to", "_base", "name", "output_nr", "retains_grad",
    "is_vulkan", "is_ipu", "is_maia", "is_mtia", "is_sparse_csr", "_is_zerotensor", "is_coalesced",
)  # fmt: skip
_DESCRIBING_TYPES = (
    "dtype", "is_floating_point", "is_complex", "element_size", "itemsize", "nbytes", "is_inference",
)  # fmt: skip
_ASKING = (
    "get_default_device", "is_grad_enabled", "is_tensor", "is_storage", "promote_types", "can_cast",
    "_has_torch_function", "get_rng_state", "is_deterministic_algorithms_warn_only_enabled",
    "are_deterministic_algorithms_enabled", "_has_compatible_shallow_copy_type", "broadcast_shapes", "device",
)  # fmt: skip
_ASKING_TYPES = ("result_type", "get_default_dtype", "is_autocast_enabled", "is_inference_mode_enabled")
_READING = (
    "__bool__", "item", "tolist", "__float__", "__int__", "__index__", "__complex__", "numpy", "__array__",
    "__contains__", "is_nonzero",
)  # fmt: skip

ROWS = (
    *(Operation(name, says="describes") for name in _DESCRIBING),
    *(Operation(name, says="describes", types=True) for name in _DESCRIBING_TYPES),
    *(Operation(name, says="asks") for name in _ASKING),
    *(Operation(name, says="asks", types=True) for name in _ASKING_TYPES),
    *(Operation(name, says="reads") for name in _READING),
    *(Operation(name, says="reads", carries="nothing") for name in ("equal", "allclose")),
    *(Operation(name, says="size", carries="nothing") for name in ("size", "shape", "numel", "nelement")),
    *(Operation(name, says="mode") for name in ("set_grad_enabled", "_set_grad_enabled")),
    *(Operation(name, says="state") for name in ("manual_seed", "set_rng_state", "seed")),
)
