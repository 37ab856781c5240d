"""A further method of a host, after two sides have met in it: the steps that go on from there with a cache.

BLIP-2 writes its image tokens into the text and hands the result to its language model's own `generate`, which feeds
one token at a time to the layer that made f, somewhere inside. The module to whose call the joint tensor went, and
which holds that layer, is the one that goes on: where it is called again with a cache that was filled then, what the
layer makes in it are further positions of f. Other modules that hold the layer (a decoder that shares its embeddings
with the encoder into which the image went) are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _tree
from .._errors import RegBNBypassedError
from ._bypass import has_tuples_for_cache, remembered
from ._growing import current_frame
from ._memory import has_caches, met_in, remember
from ._onward import continues
from ._record import CodeSite
from ._site import site_at

Call = Callable[..., Any]


class Continued:
    """One site that has met in this run of the method."""

    def __init__(self, host: nn.Module, site: CodeSite, f: Tensor, out: Tensor, direct: bool) -> None:
        """`direct`: whether f is what the layer returned, as it is."""
        self.host = host
        self.site = site
        self.module = site_at(host, site.name)
        self.out = out
        self.obstacle = ""
        if not direct:
            self.obstacle = f"f is not exactly what `{site.makers[0]}` returns"
        elif not continues(site, self.module.f_axes, f.shape, out.shape):
            self.obstacle = f"in the output of {site.point_call}, positions of f alone cannot be told from fused ones"
        self.maker = host.get_submodule(str(site.makers[0]))
        self.holders = _holders(host, self.maker)
        self.consumer: int | None = None  # the innermost module to which the joint tensor went
        self.active: list[int] = []  # how often f's layer was called in each call that goes on

    def concerns(self, module: nn.Module) -> bool:
        """Whether a module holds f's layer, or is it."""
        return id(module) in self.holders or module is self.maker

    def around(self, call: Call, is_joint: Callable[[CodeSite, Tensor], bool], top: bool) -> Call:
        """The call of a module with RegBN in it. `top`: it is called by the method itself."""

        def run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            joint = next((t for t in _tree.tensors((args, kwargs)) if is_joint(self.site, t)), None)
            if joint is not None:
                return self._fill(call, module, joint, args, kwargs)
            if module is self.maker:
                return self._make(call(module, *args, **kwargs))
            if id(module) == self.consumer:
                return self._go_on(call, module, args, kwargs)
            if top and id(module) not in self.holders and remembered(self.host, (self.site,), args, kwargs):
                raise self._refused("it calls the layers after the fusion itself, token by token")
            return call(module, *args, **kwargs)

        return run

    def _fill(self, call: Call, module: nn.Module, joint: Tensor, args: Any, kwargs: Any) -> Any:
        if id(module) in self.holders:
            self.consumer = id(module)
        output = call(module, *args, **kwargs)
        if has_caches(args, kwargs, output):
            self._spread(joint)
            remember((self.module.token,), (), args, kwargs, output)
        return output

    def _spread(self, joint: Tensor) -> None:
        """Beams: each sample's g is repeated as the joint tensor has been."""
        frame = current_frame()
        assert frame is not None, "the method itself has one"
        batch, samples = joint.shape[self.module.f_axes[0]], self.out.shape[self.module.f_axes[0]]
        if batch == samples or self.module.token not in met_in(frame):
            return
        times, axis = batch // samples, self.module.f_axes[0]
        repeated = self.out.repeat_interleave(times, axis)
        if repeated.shape == joint.shape and torch.equal(repeated.to(joint.dtype), joint):
            frame.met[self.module.token] = [met.repeated(times) for met in frame.met[self.module.token]]
            self.out = joint

    def _go_on(self, call: Call, module: nn.Module, args: Any, kwargs: Any) -> Any:
        met = remembered(self.host, (self.site,), args, kwargs).get(self.site.name)
        if met is None:
            if has_tuples_for_cache(kwargs):
                raise self._refused("its cache consists of tuples of tensors")
            return call(module, *args, **kwargs)
        if self.obstacle:
            raise self._refused(self.obstacle)
        self.met = met
        self.active.append(0)
        try:
            output = call(module, *args, **kwargs)
        finally:
            made = self.active.pop()
        if made != 1:
            raise self._refused(f"`{self.site.makers[0]}` was called {made} times in one step; once is expected")
        return output

    def _make(self, output: Any) -> Any:
        if not self.active or not isinstance(output, Tensor):
            return output
        self.active[-1] += 1
        return self.module.go_on(output, self.met)

    def _refused(self, why: str) -> RegBNBypassedError:
        return RegBNBypassedError(
            f"A method of {type(self.host).__name__} continues from a cache that a call with {self.site.name} filled, "
            f"but new positions cannot be normalised like the earlier ones: {why}. Generate with a loop that calls "
            "`forward` with both modalities at every step."
        )


def _holders(host: nn.Module, layer: nn.Module) -> set[int]:
    """The modules of the host in which a layer is, itself left out."""
    paths = [path for path, module in host.named_modules(remove_duplicate=False) if module is layer]
    parts = [path.split(".")[:-1] for path in paths]
    return {id(host.get_submodule(".".join(part[:i]))) for part in parts for i in range(1, len(part) + 1)}
