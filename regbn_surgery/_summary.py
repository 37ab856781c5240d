"""What RegBN adds to a rewritten model: parameters, state, and its share of time and memory, as data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import _tree
from ._analysis import MODEL_ERRORS
from ._errors import CaptureError
from ._inputs import Inputs, InputsLike, as_inputs, find_inputs, make_batches
from ._misfits import refusing_strange_names
from ._state import preserved, seeded
from ._surgery import RegBNSite, explain, the_rewritten
from ._surgery._classes import original_class
from ._undo import guarding


@dataclass(frozen=True)
class RegBNSummary:
    """One RegBN: what it holds, and where.

    `host_parameters` are those of the module whose forward has the fusion, RegBN's left out. `parameters` and
    `buffer_elements` count elements, `state_bytes` is the size of both. `seconds` is the time in it in one call of the
    model, the median of all timed calls, None where nothing was run. `spread` is how far its share of a call's time
    varies from call to call, half of the distance between the quartiles; None with fewer than four calls.
    """

    name: str  # path in the model
    host: str
    host_class: str
    host_parameters: int
    parameters: int
    buffer_elements: int
    state_bytes: int
    seconds: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class HostSummary:
    """A host of RegBN with what is its own: RegBN's part is left out, and so are hosts inside of it."""

    path: str  # "" is the model itself
    class_name: str
    parameters: int
    buffer_elements: int
    state_bytes: int


@dataclass(frozen=True)
class Summary:
    """A rewritten model as a table. `seconds` is the time of one call (median), of which RegBN has `time_share`;
    `time_spread` is how far that varies from call to call (see `RegBNSummary`).

    On a CPU it is processor time, so that what else runs on the machine does not count; on a GPU it is elapsed time.

    What the hosts, the rows and the rest of the model have adds up to the totals: each tensor counts once.
    """

    model: str
    parameters: int  # all of them, RegBN's included
    state_bytes: int  # parameters and buffers of the whole model
    rows: tuple[RegBNSummary, ...]
    seconds: float | None = None
    training: bool = False  # the mode in which it was timed
    calls: int = field(default=0, compare=False)
    hosts: tuple[HostSummary, ...] = ()
    buffer_elements: int = 0  # of the whole model
    time_spread: float | None = None

    @property
    def memory_share(self) -> float:
        """RegBN's part of the bytes of all parameters and buffers, from 0 to 1."""
        return sum(row.state_bytes for row in self.rows) / self.state_bytes if self.state_bytes else 0.0

    @property
    def time_share(self) -> float | None:
        """RegBN's part of the time of a call, from 0 to 1; None where nothing was run."""
        if self.seconds is None:
            return None
        return sum(row.seconds or 0.0 for row in self.rows) / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The content as plain JSON types."""
        from ._report.summary import summary_to_dict

        return summary_to_dict(self)

    def __str__(self) -> str:
        from ._report.summary import summary_view
        from ._report.text import plain

        return plain(summary_view(self))


@refusing_strange_names
@guarding
def summary(
    model: nn.Module, example_inputs: InputsLike | None = None, *, calls: int = 9, training: bool = False
) -> Summary:
    """What RegBN adds to a rewritten model; with inputs also its share of the time of a call.

    Args:
        model: a model that `regbnify` has rewritten, or one around it (see `verify`); left as it was.
        example_inputs: as for `inspect`; without them nothing is run.
        calls: how many calls are timed, after one that is not; the median counts. Forward passes without autograd.
        training: time them in training mode, in which RegBN also fits; its state is put back.

    Raises:
        RewriteError: for a model that carries no RegBN put in by `regbnify`.
        InputsError, CaptureError: where the model does not run on the inputs.
    """
    model = the_rewritten(model, ", so there is nothing to summarise")
    hosts = explain(model)
    timed: list[_Call] = []
    if example_inputs is not None:
        inputs = make_batches(model, find_inputs(model, example_inputs)).first
        timed = _timed(model, inputs, max(1, calls), training)
    sites = {path: module for path, module in model.named_modules() if isinstance(module, RegBNSite)}
    inside = {id(p) for module in sites.values() for p in module.parameters()}
    rows = []
    for host in hosts:
        held = sum(p.numel() for p in model.get_submodule(host.host).parameters() if id(p) not in inside)
        for site in host.sites:
            path = site.path
            module = model.get_submodule(path)
            buffers = list(module.buffers())
            rows.append(
                RegBNSummary(
                    path,
                    host.host,
                    host.host_class,
                    held,
                    sum(p.numel() for p in module.parameters()),
                    sum(b.numel() for b in buffers),
                    _bytes([*module.parameters(), *buffers]),
                    statistics.median(call.within.get(path, 0.0) for call in timed) if timed else None,
                    _spread([call.share(path) for call in timed]),
                )
            )
    counted = inside | {id(b) for module in sites.values() for b in module.buffers()}
    return Summary(
        original_class(model).__name__,
        sum(p.numel() for p in model.parameters()),
        _bytes([*model.parameters(), *model.buffers()]),
        tuple(rows),
        statistics.median(call.seconds for call in timed) if timed else None,
        training,
        len(timed),
        _hosts(model, [(host.host, host.host_class) for host in hosts], counted),
        sum(b.numel() for b in model.buffers()),
        _spread([call.share(*call.within) for call in timed]),
    )


def _hosts(model: nn.Module, hosts: Sequence[tuple[str, str]], counted: set[int]) -> tuple[HostSummary, ...]:
    """Each host once with its own tensors, the inner ones first; `counted` are those that belong to others."""
    own: dict[str, HostSummary] = {}
    for path, name in sorted(dict.fromkeys(hosts), key=lambda host: -len(host[0].split(".")) if host[0] else 1):
        host = model.get_submodule(path)
        parameters = [p for p in host.parameters() if id(p) not in counted]
        buffers = [b for b in host.buffers() if id(b) not in counted]
        counted = counted | {id(tensor) for tensor in (*parameters, *buffers)}
        own[path] = HostSummary(
            path,
            name,
            sum(p.numel() for p in parameters),
            sum(b.numel() for b in buffers),
            _bytes([*parameters, *buffers]),
        )
    return tuple(own[path] for path in dict.fromkeys(path for path, _ in hosts))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class _Call:
    """Seconds of one call of the model, and within each RegBN."""

    seconds: float
    within: dict[str, float]

    def share(self, *paths: str) -> float:
        return sum(self.within.get(path, 0.0) for path in paths) / self.seconds if self.seconds > 0 else 0.0


def _spread(shares: Sequence[float]) -> float | None:
    """Half of the distance between the quartiles; None for too few to have any."""
    if len(shares) < 4:
        return None
    low, _, high = statistics.quantiles(shares, n=4, method="inclusive")
    return (high - low) / 2


def _now(device: torch.device) -> float:
    """Of the processor on a CPU: other programs do not count."""
    if device.type == "cpu":
        return time.process_time()
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def _timed(model: nn.Module, inputs: Inputs, calls: int, training: bool) -> list[_Call]:
    """So many calls, one after the other; one before them is left out, since it sets things up."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    spent: dict[str, float] = {}
    started: dict[str, float] = {}

    def before(path: str) -> Any:
        return lambda module, args: started.__setitem__(path, _now(device))

    def after(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            spent[path] = spent.get(path, 0.0) + _now(device) - started[path]

        return hook

    done: list[_Call] = []
    with ExitStack() as stack:
        stack.enter_context(preserved(model))
        stack.enter_context(seeded())
        stack.enter_context(torch.no_grad())
        for path, module in model.named_modules():
            if isinstance(module, RegBNSite):
                stack.callback(module.register_forward_pre_hook(before(path)).remove)
                stack.callback(module.register_forward_hook(after(path)).remove)
        model.train(training)
        for _ in range(calls + 1):
            ours = as_inputs(inputs)
            args, kwargs = _tree.cloned((ours.args, ours.kwargs))
            spent.clear()
            start = _now(device)
            try:
                model(*args, **kwargs)
            except MODEL_ERRORS as error:
                raise CaptureError(f"{type(model).__name__} could not be run on {inputs!r}: {error}") from error
            done.append(_Call(_now(device) - start, dict(spent)))
    return done[1:]
