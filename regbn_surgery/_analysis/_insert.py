"""Put the RegBN of a plan into a copy of a traced graph: what the run would be after the surgery.

Requires: the graph of a run, as `capture` records it, and the analysis that the plan was made from. Ensures: at each
site that the run reaches, a `call_module` node of the new submodule, whose two items f' and g' are read by the calls
that the site names; nodes in an order in which all of them can run.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch.fx
from torch.fx import Node

from .._errors import PlanError
from .._trace import Frame, Key, TensorInfo, operands_of, results_of, tensor_of
from .._types import PlannedSite
from ._across import Spot
from ._anchors import Reader, Take
from ._sites import Recipe

#: A call of the host: of a function or a layer, or of a module that was looked into.
Event = Node | Frame


@dataclass(frozen=True)
class Insertion:
    """A planned site and how it is found in a run; `recipe` is None for a pair of inputs of the model."""

    planned: PlannedSite
    recipe: Recipe | None

    @property
    def takes(self) -> tuple[Take, Take]:
        """Of f and of g."""
        assert self.recipe is not None, "only sites with a recipe are taken anywhere"
        first, second = self.recipe.takes
        return (first, second) if self._f == 0 else (second, first)

    @property
    def _f(self) -> int:
        site = self.planned.site
        return 0 if site is None or site.sides[0] == self.planned.f else 1

    @property
    def replaces_g(self) -> bool:
        site = self.planned.site
        return self.planned.replace == "both" and (site is None or site.gate is None)

    @property
    def path(self) -> str:
        """Of the new submodule."""
        return self.planned.path


def insert_all(graph: torch.fx.Graph, insertions: list[Insertion]) -> torch.fx.Graph:
    """A copy of `graph` with RegBN in it.

    Raises:
        PlanError: where f is computed from what reads g, or the other way round, so that neither can come first.
    """
    inserter = _Inserter(copy.deepcopy(graph))
    for insertion in insertions:
        inserter.insert(insertion)
    put_in_order(inserter.graph)
    inserter.graph.lint()
    return inserter.graph


class _Inserter:
    """One graph being changed. Sites go in one after the other, so that a later one sees what an earlier one made."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        self.graph = graph
        self.frames: tuple[Frame, ...] = graph.output_node().meta["frames"]
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.calls = [node for node in graph.nodes if "operation" in node.meta]
        self.events: dict[tuple[int, Key], Event] = {}
        self.events.update({(f.parent, f.key): f for f in self.frames if f.parent is not None})
        self.events.update({(node.meta["frame"], node.meta["key"]): node for node in self.calls})
        self.made: dict[int, list[Node]] = {}  # by tensor: the nodes that make it; more than one where it is written to
        for node in graph.nodes:
            info = tensor_of(node)
            if info is not None:
                self.made.setdefault(info.uid, []).append(node)
        self.given: dict[tuple[int, int], Node] = {}  # what a module is given in place of its operand, by frame

    def insert(self, insertion: Insertion) -> None:
        recipe = insertion.recipe
        if recipe is None:
            assert insertion.planned.pair is not None, "only pairs of inputs have no recipe"
            names = [reference.partition(":")[2] for reference in insertion.planned.pair]
            self._everywhere(insertion, [self._input(name) for name in names], self.frames[0])
            return
        for frame in self._hosts(recipe):
            if recipe.across is not None:
                f, g = recipe.across.f, recipe.across.g
                self._everywhere(insertion, [self._spot(frame, f), self._spot(frame, g)], frame)
                continue
            for turn in self._turns(recipe, frame):
                self._between(insertion, frame, turn)

    def _hosts(self, recipe: Recipe) -> Iterator[Frame]:
        """The calls of the host in which the site has its role."""
        calls = [frame for frame in self.frames if frame.path == recipe.owner]
        for number, frame in enumerate(calls):
            if recipe.cycle is None or recipe.cycle[number % len(recipe.cycle)] == recipe.role:
                yield frame

    def _turns(self, recipe: Recipe, frame: Frame) -> list[Callable[[Key], Key]]:
        """Where each round of a loop has the calls that the recipe names; one turn where the site is in no loop."""
        if not recipe.repeats:
            return [lambda key: key]
        keys = sorted(key for index, key in self.events if index == frame.index)
        rounds = recipe.rounds
        if rounds is None:
            return [lambda _, key=key: key for key in keys if key[:3] == recipe.key[:3]]  # type: ignore[misc]
        numbers = sorted({n for key in keys if (n := rounds.round_of(rounds.key, key)) is not None})
        return [lambda key, n=n: rounds.shifted(key, n) for n in numbers]  # type: ignore[misc]

    # -- one RegBN ----------------------------------------------------------------------------------------------------

    def _between(self, insertion: Insertion, frame: Frame, turn: Callable[[Key], Key]) -> None:
        """RegBN where the takes of a recipe say; nowhere if this call of the host does not come by it."""

        def found(reader: Reader) -> tuple[Event, int] | None:
            event = self.events.get((frame.index, turn(reader[0])))
            return None if event is None else (event, reader[1])

        takes = insertion.takes
        at = [found(take.at) for take in takes]
        if at[0] is None or at[1] is None:
            return
        f, g = self._operand(*at[0]), self._operand(*at[1])
        if f is None or g is None:
            return
        readers = [[place for reader in take.readers if (place := found(reader)) is not None] for take in takes]
        reading = [event for some in readers for event, _ in some]
        new = self._regbn(insertion, (f, g), frame, reading)
        for old, now, places, wanted in ((f, new[0], readers[0], True), (g, new[1], readers[1], insertion.replaces_g)):
            for event, position in places if wanted else ():
                self._hand(event, position, old, now)

    def _everywhere(self, insertion: Insertion, sides: list[Node | None], frame: Frame) -> None:
        """RegBN behind two tensors, for all who read them."""
        f, g = sides
        if f is None or g is None:
            return
        reading: list[Event] = [user for side in (f, g) for user in side.users]
        f_new, g_new = self._regbn(insertion, (f, g), frame, reading)
        site = f_new.args[0]
        for old, new, wanted in ((f, f_new, True), (g, g_new, insertion.replaces_g)):
            if wanted:
                old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not site)

    def _regbn(
        self, insertion: Insertion, sides: tuple[Node, Node], frame: Frame, reading: list[Event]
    ) -> tuple[Node, Node]:
        """The nodes of f' and g', just before the first reader, or as soon as both sides exist."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        behind = max(sides, key=order.__getitem__)
        if behind.op == "placeholder":
            behind = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
        first = min((self._begin(event) for event in reading), key=order.__getitem__, default=behind)
        with self.graph.inserting_before(first) if order[first] > order[behind] else self.graph.inserting_after(behind):
            site = self.graph.call_module(insertion.path, sides)
        site.meta.update(
            operation="RegBN", frame=frame.index, source=None, regbn=insertion.planned,
            nn_module_stack=frame.modules, key=("RegBN", "", 0, len(self.made)),
        )  # fmt: skip
        made = []
        with self.graph.inserting_after(site):
            f_new = self.graph.call_function(operator.getitem, (site, 0))
        with self.graph.inserting_after(f_new):
            g_new = self.graph.call_function(operator.getitem, (site, 1))
        for new, old in ((f_new, sides[0]), (g_new, sides[1])):
            info = tensor_of(old)
            assert info is not None, "sides are tensors"
            uid = max(self.made) + 1
            new.meta["tensor"] = TensorInfo(uid, info.shape, info.dtype, -1 - uid)
            new.meta["tensor_meta"], new.meta["version"] = old.meta["tensor_meta"], 0
            self.made[uid] = [new]
            made.append(new)
        return made[0], made[1]

    def _begin(self, event: Event) -> Node:
        """The first node of a call."""
        return event if isinstance(event, Node) else self.calls[min(event.start, len(self.calls) - 1)]

    # -- who reads what -----------------------------------------------------------------------------------------------

    def _operand(self, event: Event, position: int) -> Node | None:
        if isinstance(event, Node):
            operands = [node for _, node in operands_of(event)]
            return operands[position] if position < len(operands) else None
        known = self.given.get((event.index, position))
        if known is not None or position >= len(event.reads):
            return known
        return self._before(event.reads[position], event.start)

    def _before(self, uid: int, start: int) -> Node | None:
        """A tensor as it was before the call number `start`."""
        end = self.order[self.calls[start]] if start < len(self.calls) else len(self.order)
        nodes = [node for node in self.made.get(uid, ()) if self.order.get(node, -1) < end]
        return nodes[-1] if nodes else None

    def _hand(self, event: Event, position: int, old: Node, new: Node) -> None:
        """Let a call read `new` where it read `old`."""
        if isinstance(event, Frame):
            self.given[event.index, position] = new
            for node in self.calls[event.start : event.end]:
                _exchange(node, old, new)
            return
        _exchange(event, old, new)
        if event.target is operator.setitem and event.args[0] is new:  # who reads it later reads what was written to
            for user in [user for user in old.users if self.order.get(user, -1) > self.order[event]]:
                user.replace_input_with(old, new)

    def _input(self, name: str) -> Node | None:
        return next((node for node in self.graph.nodes if node.meta.get("input") == name), None)

    def _spot(self, frame: Frame, spot: Spot) -> Node | None:
        """The output of a module below a host, or an argument of the host."""
        if spot.argument is not None:
            uid = dict(frame.inputs).get(spot.argument)
            return None if uid is None else self._before(uid, frame.start)
        path = f"{frame.path}.{spot.module}".lstrip(".")
        inside = self.calls[frame.start : frame.end]
        found = next((node for node in inside if node.op == "call_module" and node.target == path), None)
        if found is not None:
            return next(results_of(found), None)
        child = next((f for f in self.frames if f.path == path and f.start >= frame.start and f.outputs), None)
        return None if child is None else self._before(child.outputs[0], child.end)


def _exchange(node: Node, old: Node, new: Node) -> None:
    """Let a node, and the containers that were put together for it, read `new` in place of `old`."""
    for packed in [other for other in node.all_input_nodes if "packs" in other.meta]:
        _exchange(packed, old, new)
    if old in node.all_input_nodes:
        node.replace_input_with(old, new)


def put_in_order(graph: torch.fx.Graph) -> None:
    """Let what reads a node come after it; nodes that do not depend on each other stay in their order.

    Raises:
        PlanError: where nodes wait for each other.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    if all(order[before] < order[node] for node in order for before in node.all_input_nodes):
        return
    waiting: Mapping[Node, int] = {node: len(node.all_input_nodes) for node in order}
    left = dict(waiting)
    ready = [(i, node) for node, i in order.items() if left[node] == 0]
    heapq.heapify(ready)
    done: list[Node] = []
    while ready:
        _, node = heapq.heappop(ready)
        done.append(node)
        for user in node.users:
            left[user] -= 1
            if left[user] == 0:
                heapq.heappush(ready, (order[user], user))
    if len(done) < len(order):
        raise PlanError("one side of a RegBN is computed from what reads the other, so that neither can come first")
    for before, node in itertools.pairwise(done):
        before.append(node)


__all__ = ["Insertion", "insert_all", "put_in_order"]
