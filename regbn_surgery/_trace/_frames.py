"""The calls of modules that a run has made, and those that it is in: who calls whom, and the how-manieth call it is."""

from __future__ import annotations

import dataclasses
from collections import Counter

from .._types import Source
from ._meta import Key
from ._trace import Frame


class Frames:
    """One `Frame` for each call, in the order of their beginnings. The root's own is the first and has no parent."""

    def __init__(self) -> None:
        self.made: list[Frame] = []
        self._open: list[int] = []
        self._times: Counter[str] = Counter()  # how often each module has been called
        self._calls: list[Counter[str]] = []  # by caller, then by path
        self._keys: list[Counter[tuple[str, str, int]]] = []

    def __bool__(self) -> bool:
        """Whether the run is in a call."""
        return bool(self._open)

    @property
    def innermost(self) -> Frame:
        """The call that the run is in."""
        return self.made[self._open[-1]]

    def begin(
        self,
        path: str,
        cls: type,
        name: str,
        source: Source | None,
        *,
        start: int,
        inputs: tuple[tuple[str, int], ...],
        reads: tuple[int, ...],
        parameters: tuple[str, ...],
    ) -> None:
        """A module is called: `name` for people, in `source`; `start` operations came before."""
        parent = self.innermost if self._open else None
        call, key = 0, (name, "", 0, 0)
        if parent is not None:
            call = self._calls[parent.index][path]
            self._calls[parent.index][path] += 1
            key = self.key(name, source)
        index = len(self.made)
        above = None if parent is None else parent.index
        stack = self._stack_of(parent, path, cls)
        self.made.append(
            Frame(index, path, name, above, call, key, start, inputs, reads, (), 0, source, stack, parameters)
        )
        self._calls.append(Counter())
        self._keys.append(Counter())
        self._open.append(index)

    def end(self, outputs: tuple[int, ...], count: int) -> None:
        """The innermost call returns, after `count` operations in all."""
        index = self._open.pop()
        self.made[index] = dataclasses.replace(self.made[index], outputs=outputs, end=count)

    def key(self, name: str, source: Source | None) -> Key:
        """Of the next call of that name in this line, in the innermost frame."""
        line = (name, source.file if source else "", source.line if source else 0)
        counts = self._keys[self._open[-1]]
        nth = counts[line]
        counts[line] += 1
        return (*line, nth)

    def _stack_of(self, parent: Frame | None, path: str, cls: type) -> dict[str, tuple[str, type]]:
        """The module stack as `torch.fx` writes it: a module's second call is `path@1`."""
        times = self._times[path]
        self._times[path] += 1
        above = parent.modules if parent is not None else {}
        return {**above, f"{path}@{times}" if times else path: (path, cls)}
