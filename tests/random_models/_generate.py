"""Random multimodal models as Python source, with the truth about where their modalities meet.

A model is written as a person would write it: classes with `__init__` and `forward`, submodules with real paths, one
statement per line. What is printed on a failure is the very source that failed. The truth is kept by the generator
beside the code it writes, from the definitions of the design alone; the library is never asked.
"""

from __future__ import annotations

import itertools
import linecache
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from regbn_surgery import Inputs

from ._scope import Home, Scope, Value
from ._steps import Steps

PointKey = tuple[str, str, frozenset[Home]]

#: `Mapped` is a module of its own since the forward that calls vmap itself cannot be generated.
_HEADER = """
import math
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Mapped(nn.Module):
    def __init__(self, function, dim):
        super().__init__()
        self.function, self.dim = function, dim

    def forward(self, x):
        return torch.func.vmap(self.function, in_dims=self.dim, out_dims=self.dim)(x)

"""
_serial = itertools.count()


@dataclass(frozen=True)
class Join:
    """A call that joins plain operands: where RegBN belongs can be written by hand, straight before it."""

    owner: str
    kind: str
    homes: tuple[Home, ...]  # of the operands, in order


@dataclass(frozen=True)
class Generated:
    """A generated model: its source, how to make it and its inputs, and the truth.

    `twin` makes the same model with `at(i, operands)` written before the i-th join; it takes that function.
    """

    seed: str
    source: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    modalities: dict[str, list[str]]
    points: Counter[PointKey]
    joins: tuple[Join, ...] = ()
    twin: Callable[[Callable[..., Any]], nn.Module] | None = None

    def __str__(self) -> str:
        truth = "\n".join(f"#   {n} x {owner or '(root)'} {kind} {sorted(map(sorted, homes))}"
                          for (owner, kind, homes), n in self.points.items())  # fmt: skip
        return f"# seed {self.seed}\n# modalities {self.modalities}\n# truth:\n{truth}\n{self.source}"


class Writer(Steps):
    """Writes one model from a source of random choices."""

    WAYS: tuple[str, ...] = (
        "join", "join", "modulate", "attend", "exchange", "apart", "twice", "swapped", "layers", "bias", "return",
        "compare", "linear_attend",
    )  # fmt: skip

    def __init__(self, rng: random.Random, seed: str = "?") -> None:
        super().__init__(rng)
        self.seed = seed
        self.points: Counter[PointKey] = Counter()
        self.residuals = True  # whether attention may have a residual connection around it
        self.joins: list[Join] = []
        self.scores: list[str] = []  # of the root's forward, which returns them as they are
        self.auxiliary: list[tuple[str, Value]] = []  # streams that some scope may give a head of their own

    # -- the whole model --------------------------------------------------------------------------------------

    def write(self) -> Generated:
        count = self.rng.choice([2, 2, 2, 3, 3, 4])
        names = [f"m{i}" for i in range(count)]
        kinds = [self.rng.choice(["vec", "vec", "seq", "seq", "first", "map", "map", "ids"]) for _ in names]
        if "first" in kinds and self.rng.random() < 0.5:  # sequence-first models tend to be so throughout
            kinds = ["first" if kind in ("seq", "vec") else kind for kind in kinds]
        if "first" in kinds:
            kinds = ["first" if kind == "ids" else kind for kind in kinds]
        self.channels = self.rng.choice([4, 6, 8])
        self.length = self.rng.choice([3, 5])
        root = Scope("")
        signature, reads, make_inputs, modalities = self._interface(names, kinds)
        values = [self._input(read, name, kind) for read, name, kind in zip(reads, names, kinds, strict=True)]
        streams = []
        early = self.rng.random() < 0.15
        for value, kind in zip(values, kinds, strict=True):
            streams.append(value if early and kind not in ("ids", "first") else self._embed(root, value, kind))
        outputs = self._body(root, streams)
        self._finish(root, outputs)
        source = self._assemble(root, signature)
        twin_source = _HEADER + "\n".join(self.twins)
        make = self._factory(source)
        return Generated(
            self.seed, source, make, make_inputs, modalities, self.points, tuple(self.joins), self._twin(twin_source)
        )

    def _interface(
        self, names: list[str], kinds: list[str]
    ) -> tuple[str, list[str], Callable[[int], Inputs], dict[str, list[str]]]:
        style = self.rng.choice(["positional", "positional", "keyword", "dict", "list", "keyword_only"])
        shapes = dict(zip(names, kinds, strict=True))
        channels, length = self.channels, self.length

        def tensors(batch: int) -> dict[str, torch.Tensor]:
            return {name: _example(kind, batch, channels, length) for name, kind in shapes.items()}

        if style == "dict":
            reads = [f'batch["{name}"]' for name in names]
            return "self, batch", reads, lambda n: Inputs(tensors(n)), {n: [f"batch.{n}"] for n in names}
        if style == "list":
            reads = [f"xs[{i}]" for i in range(len(names))]
            places = {name: [f"xs.{i}"] for i, name in enumerate(names)}
            return "self, xs", reads, lambda n: Inputs(list(tensors(n).values())), places
        star = "*, " if style == "keyword_only" else ""
        signature = f"self, {star}{', '.join(names)}"
        by_name = style != "positional"

        def inputs(batch: int) -> Inputs:
            made = tensors(batch)
            return Inputs(**made) if by_name else Inputs(*made.values())

        return signature, list(names), inputs, {n: [n] for n in names}

    def _input(self, read: str, name: str, kind: str) -> Value:
        layout = "seq" if kind == "ids" else kind
        size = {"vec": 0, "map": 4}.get(layout, self.length)
        return Value(read, frozenset({name}), layout, self.channels, size)

    def _embed(self, scope: Scope, value: Value, kind: str) -> Value:
        c = self.channels
        if kind == "ids":
            return self._apply(scope, value, f"nn.Embedding(11, {c})")
        if kind == "map":
            return self._apply(scope, value, f"nn.Conv2d({c}, {c}, 3, padding=1)")
        return self._apply(scope, value, f"nn.Linear({c}, {c})")

    def _body(self, scope: Scope, streams: list[Value]) -> list[Value]:
        """Branches, stages and fusions until little is left apart."""
        streams = [self._branch(scope, value) for value in streams]
        rounds = self.rng.choice([1, 2, 2, 3])
        for _ in range(rounds):
            if len(streams) == 1:
                break
            chosen = sorted(
                self.rng.sample(range(len(streams)), 2 if len(streams) == 2 else self.rng.choice([2, 2, 3]))
            )
            group = [streams[i] for i in chosen]
            made = self._meet(scope, group)
            streams = [s for i, s in enumerate(streams) if i not in chosen]
            streams += [self._branch(scope, value, self.rng.choice([0, 1])) for value in made]
        if len(streams) > 1 and self.rng.random() < 0.7:
            streams = self._fuse_all(scope, streams)
        return streams

    def _meet(self, scope: Scope, group: list[Value]) -> list[Value]:
        """One meeting of the group; what comes out may be one stream or as many as went in."""
        if self.depth < 2 and self.rng.random() < 0.3:
            return self._stage(scope, group)
        if len(group) > 2:
            apart = _incomparable(group)
            if len(apart) < 2:
                return group
            return self._joined(scope, apart) + [value for value in group if value not in apart]
        x, y = group if self.rng.random() < 0.5 else group[::-1]
        if x.home == y.home:
            return [self._tidy(scope, x), self._tidy(scope, y)]
        if x.home <= y.home or y.home <= x.home:
            return [self._again(scope, *sorted((x, y), key=lambda value: len(value.home)))]
        way = self.rng.choice(self.WAYS)
        if way not in ("join", "modulate", "attend", "exchange", "apart"):
            made: list[Value] = getattr(self, f"_meet_{way}")(scope, x, y)
            return made
        if way == "join":
            return self._joined(scope, [x, y])
        if way == "modulate":
            return [self._modulate(scope, x, y), *([y] if self.rng.random() < 0.5 else [])]
        if way == "attend":
            return [self._attend(scope, x, y), y]
        if way == "exchange":
            return self._exchange(scope, x, y)
        return self._apart(scope, x, y)

    def _tidy(self, scope: Scope, value: Value) -> Value:
        return self._branch(scope, value, 1)

    # -- a submodule with a program of its own -------------------------------------------------------------------

    def _stage(self, scope: Scope, group: list[Value]) -> list[Value]:
        """A submodule that takes the streams and gives streams back; sometimes several in a ModuleList."""
        self.depth += 1
        name = scope.fresh("stage")
        cls = f"Stage{next(self.serial)}"
        inner = Scope(scope.under(name))
        arguments = [replace(value, name=f"a{i}") for i, value in enumerate(group)]
        streams = [self._branch(inner, value, self.rng.choice([0, 1])) for value in arguments]
        made = self._meet(inner, streams)
        self.depth -= 1
        returned = ", ".join(value.name for value in made)
        inner.body.append(f"return {returned}")
        self._class(cls, inner, f"self, {', '.join(v.name for v in arguments)}")
        scope.init.append(f"self.{name} = {cls}()")
        results = [replace(value, name=scope.fresh()) for value in made]
        given = ", ".join(value.name for value in group)
        scope.body.append(f"{', '.join(value.name for value in results)} = self.{name}({given})")
        return results

    def _owner(self, scope: Scope, arguments: list[Value], write: Callable[[Scope, list[Value]], Value]) -> Value:
        """Write a fusion into this forward, or into a submodule made for it."""
        place = self.rng.choice(["here", "here", "method", "submodule", "submodule", "submodule"])
        if place == "here":
            return write(scope, arguments)
        if place == "method":
            return self._method(scope, arguments, write)
        name = scope.fresh("fuse")
        cls = f"Fuse{next(self.serial)}"
        inner = Scope(scope.under(name))
        inside = [replace(value, name=f"a{i}") for i, value in enumerate(arguments)]
        result = write(inner, inside)
        inner.body.append(f"return {result.name}")
        self._class(cls, inner, f"self, {', '.join(v.name for v in inside)}")
        scope.init.append(f"self.{name} = {cls}()")
        return self._statement(scope, result, f"self.{name}({', '.join(v.name for v in arguments)})")

    def _method(self, scope: Scope, arguments: list[Value], write: Callable[[Scope, list[Value]], Value]) -> Value:
        """The owner's forward calls a method of its own."""
        inner = Scope(scope.path, scope.init, [], scope.names, scope.methods)
        inside = [replace(value, name=f"a{i}") for i, value in enumerate(arguments)]
        result = write(inner, inside)
        inner.body.append(f"return {result.name}")
        name = scope.fresh("mix")
        scope.methods.append((name, f"self, {', '.join(v.name for v in inside)}", inner.body))
        return self._statement(scope, result, f"self.{name}({', '.join(v.name for v in arguments)})")

    # -- meetings -------------------------------------------------------------------------------------------------

    def _point(self, scope: Scope, kind: str, *values: Value) -> None:
        self.points[(scope.path, kind, frozenset(value.home for value in values))] += 1

    def _join_point(self, scope: Scope, kind: str, *values: Value) -> None:
        """A point whose call is the next statement and whose operands are these variables."""
        self._point(scope, kind, *values)
        names = tuple(value.name for value in values)
        scope.body.append(f"#@ {len(self.joins)} {' '.join(names)}")
        self.joins.append(Join(scope.path, kind, tuple(value.home for value in values)))

    def _joined(self, scope: Scope, group: list[Value]) -> list[Value]:
        """Concatenation or an equal-shape sum or product: one stream comes out."""
        layout = self.rng.choice(["vec", "vec", "seq", "map"]) if all(v.layout == "map" for v in group) else None
        layout = layout or self.rng.choice(["vec", "vec", "seq"] if all(v.layout != "vec" for v in group) else ["vec"])
        group = [self._as(scope, value, layout) for value in group]
        if layout == "seq" and len({value.size for value in group}) > 1:
            way = "tokens"
        else:
            ways = ["channels", "channels", "sum", "product", "stack"] + (["tokens"] if layout == "seq" else [])
            if layout == "vec" and len(group) == 2:
                ways += ["bilinear", "outer"]
            way = self.rng.choice(ways)
        if way != "channels":
            group = [self._widened(scope, value, self.channels) for value in group]
        return [self._owner(scope, group, lambda inner, values: self._join(inner, values, layout, way))]

    def _join(self, scope: Scope, values: list[Value], layout: str, way: str) -> Value:
        home = frozenset().union(*(value.home for value in values))
        names = ", ".join(value.name for value in values)
        axis = {"vec": 1, "map": 1, "seq": 2}[layout]
        total = sum(value.channels for value in values)
        if way == "channels":
            self._join_point(scope, "concat", *values)
            spelled = self.rng.choice([axis, axis, axis - len(_shape(layout))])
            forms = [f"torch.cat([{names}], {spelled})", f"torch.cat(({names}), dim={spelled})",
                     f"torch.concat([{names}], axis={spelled})",
                     f"torch.cat([t for t in ({names})], {spelled})"]  # fmt: skip
            call = self.rng.choice([*forms, f"torch.hstack([{names}])"] if axis == 1 else forms)
            joined = self._statement(scope, replace(values[0], home=home, channels=total), call)
            return self._project(scope, joined, self.channels, always=True)
        if way == "tokens":
            self._join_point(scope, "concat", *values)
            joined = replace(values[0], home=home, size=sum(value.size for value in values))
            joined = self._statement(scope, joined, f"torch.cat([{names}], dim=1)")
            return self._mix_tokens(scope, joined)
        if way == "stack":
            self._join_point(scope, "concat", *values)
            dim = self.rng.choice([0, 1])
            joined = replace(values[0], home=home)
            if layout == "vec" and self.rng.random() < 0.3:
                joined = self._statement(
                    scope, replace(joined, channels=total), f"torch.stack([{names}], 1).flatten(1)"
                )
                return self._project(scope, joined, self.channels, always=True)
            if layout == "vec" and self.channels % 2 == 0 and self.rng.random() < 0.3:
                tokens = replace(joined, layout="seq", size=len(values))
                return self._mix_tokens(scope, self._statement(scope, tokens, f"torch.stack([{names}], dim=1)"))
            pool = self.rng.choice(["mean({0})", "sum({0})", "amax({0})", "max({0}).values", "logsumexp({0})"])
            call = f"torch.stack([{names}], {dim}).{pool.format(dim)}"
            return self._project(scope, self._statement(scope, joined, call), self.channels)
        if way == "bilinear":
            self._join_point(scope, "bilinear", *values)
            name = scope.module(f"nn.Bilinear({values[0].channels}, {values[1].channels}, {self.channels})", "bilinear")
            return self._statement(
                scope, replace(values[0], home=home, channels=self.channels), f"self.{name}({names})"
            )
        if way == "outer":
            self._point(scope, "matmul", *values)
            joined = replace(values[0], home=home, channels=values[0].channels * values[1].channels)
            call = f'torch.einsum("bi,bj->bij", {names}).flatten(1)'
            return self._project(scope, self._statement(scope, joined, call), self.channels)
        return self._fold(scope, values, way, home)

    def _mix_tokens(self, scope: Scope, v: Value) -> Value:
        """After this every token holds something of all."""
        if v.channels % 2:
            return replace(self._statement(scope, v, f"{v.name}.mean(dim=1)"), layout="vec", size=0)
        way = self.rng.choice(["encoder", "attention", "mean", "rnn"])
        if way == "encoder":
            return self._step_encoder(scope, v)
        if way == "attention":
            return self._step_selfattention(scope, v)
        if way == "rnn":
            name = scope.module(f"nn.GRU({v.channels}, {v.channels}, batch_first=True)", "rnn")
            return replace(self._statement(scope, v, f"self.{name}({v.name})[1][-1]"), layout="vec", size=0)
        return replace(self._statement(scope, v, f"{v.name}.mean(dim=1)"), layout="vec", size=0)

    def _fold(self, scope: Scope, values: list[Value], way: str, home: Home) -> Value:
        kind = {"sum": "sum", "product": "product"}[way]
        result = values[0]
        for value in values[1:]:
            if way == "sum" and self.rng.random() < 0.25:
                self._point(scope, kind, result, value)
                result = self._statement(scope, result, f"{result.name}.clone()")
                form = self.rng.choice(["{0} += {1}", "{0}.add_({1})", "{0}.add_({1}, alpha=0.5)"])
                scope.body.append(form.format(result.name, value.name))
                result = replace(result, home=result.home | value.home)
                continue
            if way == "product" and (result.squashed or value.squashed):
                self._point(scope, kind, result, value)  # one of the two may count as the other's gate
            else:
                self._join_point(scope, kind, result, value)
            if way == "sum":
                call = self.rng.choice(
                    [
                        "torch.maximum({0}, {1})",
                        "torch.lerp({0}, {1}, 0.3)",
                        "torch.logaddexp({0}, {1})",
                        "{0} + {1}",
                        "torch.add({0}, {1})",
                        "{0} - {1}",
                        "torch.add({0}, {1}, alpha=0.5)",
                        "sum([{0}, {1}])",
                    ]
                )
            else:
                call = self.rng.choice(["{0} * {1}", "torch.mul({0}, {1})"])
            merged = replace(result, home=result.home | value.home)
            result = self._statement(scope, merged, call.format(result.name, value.name))
        assert result.home == home
        return self._project(scope, result, self.channels)

    def _modulate(self, scope: Scope, x: Value, y: Value) -> Value:
        """A gate or FiLM: y modulates x, whose stream it stays where x is larger."""
        source = self._as(scope, y, "vec")
        return self._owner(scope, [x, source], self._modulation)

    def _modulation(self, scope: Scope, values: list[Value]) -> Value:
        x, source = values
        tail = {"vec": "", "seq": "[:, None]", "first": "[None]", "map": "[:, :, None, None]"}[x.layout]
        # A vector beside a single position is no smaller than it: nothing is left whose home it could keep.
        home = x.home | source.home if x.layout == "vec" or x.size == 1 else x.home
        self._point(scope, "product", x, source)
        if self.rng.random() < 0.5:
            gate = scope.module(f"nn.Linear({source.channels}, {x.channels})", "gate")
            squash = self.rng.choice(
                ["torch.sigmoid(self.{0}({1}))", "self.{0}({1}).sigmoid()", "self.{0}({1}).tanh()"]
            )
            weight = self._statement(scope, source, squash.format(gate, source.name))
            return self._statement(scope, replace(x, home=home), f"{x.name} * {weight.name}{tail}")
        film = scope.module(f"nn.Linear({source.channels}, {2 * x.channels})", "film")
        gamma, beta = scope.fresh("gamma"), scope.fresh("beta")
        scope.body.append(f"{gamma}, {beta} = self.{film}({source.name}).chunk(2, dim=-1)")
        form = self.rng.choice(["{g} * {x} + {b}", "(1 + {g}) * {x} + {b}", "{x} * {g} + {b}"])
        call = form.format(g=gamma + tail, b=beta + tail, x=x.name)
        return self._statement(scope, replace(x, home=home), call)

    def _attend(self, scope: Scope, x: Value, y: Value) -> Value:
        """x attends to y and stays its own stream."""
        first = x.layout == "first" and y.layout == "first"
        if not first:
            x, y = self._as(scope, x, "seq"), self._as(scope, y, "seq")
        x, y = (self._widened(scope, value, self.channels) for value in (x, y))
        return self._owner(scope, [x, y], self._attention)

    def _exchange(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """Both streams attend to each other, from what they were before."""
        x, y = (self._widened(scope, self._as(scope, value, "seq"), self.channels) for value in (x, y))
        return [
            self._owner(scope, [x, y], self._attention),
            self._owner(scope, [y, x], self._attention),
        ]

    def _attention(self, scope: Scope, values: list[Value]) -> Value:
        x, y = values
        c = self.channels
        self._point(scope, "attention", x, y)
        if x.layout == "first" or self.rng.random() < 0.4:
            flag = x.layout != "first"
            name = scope.module(f"nn.MultiheadAttention({c}, 2, batch_first={flag})", "cross")
            call = f"self.{name}({x.name}, {y.name}, {y.name}, need_weights=False)[0]"
            attended = self._statement(scope, x, call)
        else:
            attended = self._attention_by_hand(scope, x, y)
        if self.residuals and self.rng.random() < 0.6:
            return self._statement(scope, x, f"{x.name} + {attended.name}")
        return replace(attended, lent=True)

    def _attention_by_hand(self, scope: Scope, x: Value, y: Value) -> Value:
        c = self.channels
        q, k, v = (scope.module(f"nn.Linear({c}, {c})", label) for label in ("q", "k", "v"))
        lines = [f"q = self.{q}({x.name})", f"k = self.{k}({y.name})", f"v = self.{v}({y.name})"]
        ways = ["matmul", "bmm", "bmm_swapped", "einsum", "sdpa", "heads", "heads_einsum", "cosine", "additive", "rows"]
        way = self.rng.choice(ways)
        out = scope.fresh("z")
        if way == "rows" and self.rng.random() < 0.5:  # keys with a code of their positions, values without
            code = scope.module(f"nn.Parameter(torch.randn(1, 1, {c}))", "code")
            lines[1] = f"k = self.{k}({y.name} + self.{code})"
        if way == "matmul":
            lines += [f"w = torch.softmax(q @ k.transpose(1, 2) / math.sqrt({c}), -1)", f"{out} = torch.matmul(w, v)"]
        elif way == "bmm":
            lines += ["w = torch.bmm(q, k.transpose(-1, -2)).softmax(dim=-1)", f"{out} = torch.bmm(w, v)"]
        elif way == "bmm_swapped":
            lines += ["w = torch.bmm(q, k.transpose(1, 2)).softmax(2)",
                      f"{out} = torch.bmm(v.transpose(1, 2), w.transpose(1, 2)).transpose(1, 2)"]  # fmt: skip
        elif way == "einsum":
            lines += ['w = torch.einsum("bqc,bkc->bqk", q, k).softmax(-1)',
                      f'{out} = torch.einsum("bqk,bkc->bqc", w, v)']  # fmt: skip
        elif way == "cosine":
            lines += ["w = (5 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).softmax(-1)",
                      f"{out} = w @ v"]  # fmt: skip
        elif way == "additive":
            score = scope.module(f"nn.Linear({c}, 1, bias=False)", "score")
            lines += [f"w = self.{score}(torch.tanh(q[:, :, None] + k[:, None])).squeeze(-1).softmax(-1)",
                      f"{out} = torch.bmm(w, v)"]  # fmt: skip
        elif way == "rows":
            lines += ["w = torch.einsum('bqc,bkc->bqk', q, k).softmax(-1)",
                      f"{out} = (w[..., None] * v[:, None]).sum(2)"]  # fmt: skip
        elif way == "sdpa":
            lines += [f"{out} = F.scaled_dot_product_attention(q, k, v)"]
        else:
            split = ".view({0}.shape[0], -1, 2, " + str(c // 2) + ").transpose(1, 2)"
            lines += [f"{n} = {n}" + split.format(n) for n in "qkv"]
            if way == "heads":
                lines += ["w = (q @ k.transpose(-2, -1)).softmax(-1)", f"{out} = w @ v"]
            else:
                lines += ['w = torch.einsum("bhqc,bhkc->bhqk", q, k).softmax(-1)',
                          f'{out} = torch.einsum("bhqk,bhkc->bhqc", w, v)']  # fmt: skip
            lines += [f"{out} = {out}.transpose(1, 2).reshape({out}.shape[0], -1, {c})"]
        scope.body.extend(lines)
        return self._project(scope, replace(x, name=out), c, always=True)

    def _apart(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """Put together and taken apart again: no meeting."""
        if x.layout == "map" and y.layout == "map":
            layout = "map"
        else:
            layout = "vec"
        x, y = (self._widened(scope, self._as(scope, value, layout), self.channels) for value in (x, y))
        both, left, right = scope.fresh(), scope.fresh(), scope.fresh()
        if self.rng.random() < 0.5:
            scope.body.append(f"{both} = torch.cat([{x.name}, {y.name}], 0)")
            c = self.channels
            shared = scope.module(f"nn.Linear({c}, {c})" if layout == "vec" else f"nn.Conv2d({c}, {c}, 1)", "shared")
            scope.body.append(f"{left}, {right} = self.{shared}({both}).chunk(2, 0)")
        else:
            scope.body.append(f"{both} = torch.cat([{x.name}, {y.name}], 1)")
            if self.rng.random() < 0.5:
                scope.body.append(f"{both} = F.gelu({both})")
            c = self.channels
            if self.rng.random() < 0.5:
                scope.body.append(f"{left}, {right} = {both}.split([{c}, {c}], 1)")
            else:
                scope.body.append(f"{left}, {right} = {both}[:, :{c}], {both}[:, {c}:]")
        made = [replace(x, name=left), replace(y, name=right)]
        return [self._tidy(scope, value) for value in made]

    def _meet_twice(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """One shared owner that joins the same two streams at two depths: one point."""
        x, y = (self._widened(scope, self._as(scope, value, "vec"), self.channels) for value in (x, y))
        name, cls = scope.fresh("joint"), f"Joint{next(self.serial)}"
        inner = Scope(scope.under(name))
        inside = [replace(x, name="a0"), replace(y, name="a1")]
        way = self.rng.choice(["channels", "sum", "product"])
        result = self._join(inner, inside, "vec", way)
        inner.body.append(f"return {result.name}")
        self._class(cls, inner, "self, a0, a1")
        scope.init.append(f"self.{name} = {cls}()")
        first = self._statement(scope, result, f"self.{name}({x.name}, {y.name})")
        deeper = [self._project(scope, self._branch(scope, v, 1), self.channels, always=True) for v in (x, y)]
        second = self._statement(scope, result, f"self.{name}({deeper[0].name}, {deeper[1].name})")
        self.auxiliary.append((scope.path, first))
        return [second]

    def _meet_swapped(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """One shared attention that both streams go through, with the roles swapped: one point."""
        x, y = (self._widened(scope, self._as(scope, value, "seq"), self.channels) for value in (x, y))
        name, cls = scope.fresh("cross"), f"Cross{next(self.serial)}"
        inner = Scope(scope.under(name))
        result = self._attention(inner, [replace(x, name="a0"), replace(y, name="a1")])
        inner.body.append(f"return {result.name}")
        self._class(cls, inner, "self, a0, a1")
        scope.init.append(f"self.{name} = {cls}()")
        return [
            self._statement(scope, replace(x, lent=result.lent), f"self.{name}({x.name}, {y.name})"),
            self._statement(scope, replace(y, lent=result.lent), f"self.{name}({y.name}, {x.name})"),
        ]

    def _meet_layers(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """Equal layers in a ModuleList, each of which lets the two streams meet and keeps their shapes."""
        x, y = (self._widened(scope, self._as(scope, value, "seq"), self.channels) for value in (x, y))
        count, before = self.rng.choice([2, 3]), self.points.copy()
        name, cls = scope.fresh("stages"), f"Layer{next(self.serial)}"
        inner = Scope(scope.under(f"{name}.0"))
        a, b = replace(x, name="a0"), replace(y, name="a1")
        first = self._owner(inner, [a, b], self._attention)
        other = first if self.rng.random() < 0.5 else a
        second = self._owner(inner, [b, other], self._attention) if self.rng.random() < 0.7 else b
        inner.body.append(f"return {first.name}, {second.name}")
        self._class(cls, inner, "self, a0, a1")
        scope.init.append(f"self.{name} = nn.ModuleList([{cls}() for _ in range({count})])")
        for (owner, kind, homes), n in (self.points - before).items():
            for i in range(1, count):
                self.points[(owner.replace(f"{name}.0", f"{name}.{i}", 1), kind, homes)] += n
        left, right = scope.fresh(), scope.fresh()
        scope.body.append(f"{left}, {right} = {x.name}, {y.name}")
        scope.body.append(f"for stage in self.{name}:")
        scope.body.append(f"    {left}, {right} = stage({left}, {right})")
        return [replace(x, name=left, lent=first.lent), replace(y, name=right, lent=second.lent)]

    def _meet_bias(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """A vector of one stream is added all over a larger tensor of the other, which stays what it was."""
        if x.layout == "vec":
            return self._joined(scope, [x, y])
        source = self._as(scope, y, "vec")

        def write(inner: Scope, values: list[Value]) -> Value:
            big, small = values
            tail = {"seq": "[:, None]", "first": "[None]", "map": "[:, :, None, None]"}[big.layout]
            self._point(inner, "sum", big, small)
            name = inner.module(f"nn.Linear({small.channels}, {big.channels})", "shift")
            return self._statement(inner, big, f"{big.name} + self.{name}({small.name}){tail}")

        return [self._owner(scope, [x, source], write), y]

    def _meet_return(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """Joined, and then a part comes again: as a residual (no point), or by a way of its own (a point)."""
        x, y = (self._widened(scope, self._as(scope, value, "vec"), self.channels) for value in (x, y))
        joined = self._owner(scope, [x, y], lambda inner, values: self._join(inner, values, "vec", "channels"))
        if self.rng.random() < 0.5:
            merged = replace(joined, home=x.home)
            return [self._statement(scope, merged, f"{joined.name} + {x.name}"), y]
        again = self._project(scope, x, self.channels, always=True)
        self._join_point(scope, "sum", joined, again)
        return [self._statement(scope, joined, f"{joined.name} + {again.name}")]

    def _meet_compare(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """The matrix of similarities of a contrastive loss, beside the branches that go on."""
        if scope.path:
            return self._joined(scope, [x, y])
        pooled = [self._widened(scope, self._as(scope, value, "vec"), self.channels) for value in (x, y)]
        name, cls = scope.fresh("match"), f"Match{next(self.serial)}"
        inner = Scope(scope.under(name))
        self._point(inner, "similarity", x, y)
        form = self.rng.choice(
            [
                "F.normalize(a0, dim=-1) @ F.normalize(a1, dim=-1).t()",
                "torch.einsum('ic,jc->ij', a0 / a0.norm(dim=-1, keepdim=True), a1)",
                "F.cosine_similarity(a0, a1, dim=-1)",
                "-torch.cdist(a0, a1)",
            ]
        )
        inner.body.append(f"return {form}")
        self._class(cls, inner, "self, a0, a1")
        scope.init.append(f"self.{name} = {cls}()")
        scores = scope.fresh()
        scope.body.append(f"{scores} = self.{name}({pooled[0].name}, {pooled[1].name})")
        self.scores.append(scores)
        return [x, y]

    def _meet_linear_attend(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """Keys and values of one stream are summed up before the other's queries read them; a residual around it."""
        x, y = (self._widened(scope, self._as(scope, value, "seq"), self.channels) for value in (x, y))

        def write(inner: Scope, values: list[Value]) -> Value:
            a, b = values
            self._point(inner, "matmul", a, b)
            c = self.channels
            q, kv = inner.module(f"nn.Linear({c}, {c})", "q"), inner.module(f"nn.Linear({c}, {2 * c})", "kv")
            inner.body.append(f"k, v = self.{kv}({b.name}).chunk(2, dim=-1)")
            inner.body.append("summary = k.softmax(dim=1).transpose(1, 2) @ v")
            return self._statement(inner, a, f"{a.name} + self.{q}({a.name}).softmax(-1) @ summary")

        return [self._owner(scope, [x, y], write), y]

    def _again(self, scope: Scope, pure: Value, mixed: Value) -> Value:
        """A stream meets one that holds it already, by a way of its own: a re-entry, for sums and concatenations."""
        mixed = self._widened(scope, self._as(scope, mixed, "vec"), self.channels)
        pure = self._project(scope, self._as(scope, pure, "vec"), self.channels, always=True)
        way = self.rng.choice(["sum", "channels"])
        return self._owner(scope, [mixed, pure], lambda inner, values: self._join(inner, values, "vec", way))

    def _fuse_all(self, scope: Scope, streams: list[Value]) -> list[Value]:
        kept = _incomparable(streams)
        if len(kept) < 2:
            return streams
        return self._joined(scope, kept) + [value for value in streams if value not in kept]

    # -- the text -------------------------------------------------------------------------------------------------

    def _finish(self, scope: Scope, streams: list[Value]) -> None:
        results = []
        for value in [*streams, *(value for path, value in self.auxiliary if path == "")]:
            pooled = self._pooled(scope, value)
            head = scope.module(f"nn.Linear({pooled.channels}, 3)", "head")
            results.append(f"self.{head}({pooled.name})")
        results.extend(self.scores)
        if len(results) == 1 and self.rng.random() < 0.6:
            scope.body.append(f"return {results[0]}")
        elif self.rng.random() < 0.5:
            scope.body.append("return {" + ", ".join(f'"out{i}": {text}' for i, text in enumerate(results)) + "}")
        else:
            scope.body.append(f"return ({', '.join(results)},)")

    def _assemble(self, root: Scope, signature: str) -> str:
        self._class("Model", root, signature)
        return _HEADER + "\n".join(self.classes)

    def _factory(self, source: str) -> Callable[[], nn.Module]:
        # A name as of a real file: line numbers are how the library tells calls apart.
        names = self._run(source, f"/generated/model_{self.seed}_{next(_serial)}.py")

        def make() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model: nn.Module = names["Model"]()
                return model

        return make

    def _twin(self, source: str) -> Callable[[Callable[..., Any]], nn.Module]:
        def make(at: Callable[..., Any]) -> nn.Module:
            names = self._run(source, f"/generated/twin_{self.seed}_{next(_serial)}.py")
            names["at"] = at
            model: nn.Module = names["Model"]()
            return model

        return make

    def _run(self, source: str, filename: str) -> dict[str, Any]:
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        names: dict[str, Any] = {"__name__": "generated"}
        exec(compile(source, filename, "exec"), names)
        return names


def _incomparable(values: list[Value]) -> list[Value]:
    """The first of them whose homes do not hold one another."""
    kept: list[Value] = []
    for value in values:
        if not any(value.home <= other.home or other.home <= value.home for other in kept):
            kept.append(value)
    return kept


def _shape(layout: str) -> str:
    return {"vec": "BC", "seq": "BLC", "first": "LBC", "map": "BCHW"}[layout]


def _example(kind: str, batch: int, channels: int, length: int) -> torch.Tensor:
    if kind == "ids":
        return torch.randint(0, 11, (batch, length))
    shape = {"vec": (batch, channels), "seq": (batch, length, channels), "first": (length, batch, channels),
             "map": (batch, channels, 4, 4)}[kind]  # fmt: skip
    return torch.randn(shape)
