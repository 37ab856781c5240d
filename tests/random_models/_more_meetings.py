"""More ways in which streams meet or only pass each other, as models of the last years have them.

Stacks along the batch for one shared trunk, co-attention without a residual connection, positions that every layer of
a decoder adds again, and frames that are joined one by one, with time folded into the batch. (Code books are a step of
one stream: see `_steps`.)
"""

from __future__ import annotations

import random
from dataclasses import replace

from ._generate import Generated, Writer
from ._scope import Scope, Value

_AXIS = {"vec": 1, "map": 1, "seq": 2}


class MoreMeetings(Writer):
    WAYS = (*Writer.WAYS, "stacked", "co_attend", "positions", "folded_rows")

    # -- streams stacked along the batch ----------------------------------------------------------------------------

    def _meet_stacked(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """One trunk for both, which joins by concatenation within itself; afterwards each goes its own way."""
        layout = "map" if x.layout == y.layout == "map" else "vec"
        if layout == "vec" and self.rng.random() < 0.5:
            x, y = (self._as(scope, value, "seq") for value in (x, y))
            layout = "seq" if x.size == y.size else "vec"
        x, y = (self._widened(scope, self._as(scope, value, layout), self.channels) for value in (x, y))
        more = self.rng.choice([0, 0, 1])  # a second view of the first stream: three in the stack
        names = [x.name, y.name] + [self._statement(scope, x, f"{x.name} * 0.5").name for _ in range(more)]
        name, cls = scope.fresh("trunk"), f"Trunk{next(self.serial)}"
        inner = Scope(scope.under(name))
        result = self._trunk(inner, replace(x, name="a0"))
        inner.body.append(f"return {result.name}")
        self._class(cls, inner, "self, a0")
        scope.init.append(f"self.{name} = {cls}()")
        n, made = len(names), [scope.fresh() for _ in names]
        stack, whole = scope.fresh(), scope.fresh()
        together = self.rng.choice(["torch.cat([{0}])", "torch.cat(({0}), dim=0)", "torch.stack([{0}]).flatten(0, 1)"])
        scope.body.append(f"{stack} = {together.format(', '.join(names))}")
        scope.body.append(f"{whole} = self.{name}({stack})")
        size = f"{x.name}.shape[0]"
        apart = self.rng.choice(
            [
                f"{whole}.chunk({n})",
                f"torch.split({whole}, {size})",
                ", ".join(f"{whole}[{i} * {size}:{i + 1} * {size}]" for i in range(n)),
                f"{whole}.view({n}, {size}, *{whole}.shape[1:]).unbind(0)",
                f"torch.tensor_split({whole}, {n}, dim=0)",
            ]
        )
        scope.body.append(f"{', '.join(made)} = {apart}")
        first = replace(result, name=made[0], home=x.home)
        if more:
            first = self._statement(scope, first, f"{first.name} + {made[2]}")
        return [first, replace(result, name=made[1], home=y.home)]

    def _trunk(self, scope: Scope, v: Value) -> Value:
        """As in a U-Net, a DenseNet or a pyramid: what a layer was given is joined with what it made."""
        axis, known = _AXIS[v.layout], [v]
        for _ in range(self.rng.choice([1, 2])):
            names = ", ".join(value.name for value in known)
            total = sum(value.channels for value in known)
            joined = self._statement(scope, replace(v, channels=total), f"torch.cat([{names}], {axis})")
            grown = self._project(scope, joined if len(known) > 1 else v, self.channels, always=True)
            known.append(self._statement(scope, grown, f"F.relu({grown.name})"))
        names = ", ".join(value.name for value in known)
        joined = self._statement(
            scope, replace(v, channels=sum(value.channels for value in known)), f"torch.cat(({names}), dim={axis})"
        )
        made = self._project(scope, joined, self.channels, always=True)
        if self.rng.random() < 0.5:
            made = self._statement(scope, made, f"{made.name} + {v.name}")
        return made

    # -- co-attention -----------------------------------------------------------------------------------------------

    def _meet_co_attend(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """What x's queries get from y stands in y's place, and is joined with x: a second point."""
        if x.lent or y.lent:
            return self._joined(scope, [x, y])
        x, y = (self._widened(scope, self._as(scope, value, "seq"), self.channels) for value in (x, y))
        self.residuals = False
        seen = self._owner(scope, [x, y], self._attention)
        self.residuals = True
        taken = [self._branch(scope, replace(seen, home=y.home, lent=False), 0), x]
        if self.rng.random() < 0.5:  # a layer on the way does not change whose values they are
            taken[0] = self._project(scope, taken[0], self.channels, always=True)
        if self.rng.random() < 0.7:
            taken = [self._pooled(scope, value) for value in taken]
        layout, way = taken[0].layout, self.rng.choice(["channels", "channels", "stack"])
        if layout == "vec" and self.rng.random() < 0.4:
            way = self.rng.choice(["product", "bilinear"])  # a sum of the first tokens is a residual connection
        return [self._owner(scope, taken, lambda inner, values: self._join(inner, values, layout, way))]

    # -- positions that every layer adds --------------------------------------------------------------------------

    def _meet_positions(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """The joint stream, and codes of the positions of one stream in it that are added again in every layer."""
        x, y = (self._widened(scope, self._as(scope, value, "seq"), self.channels) for value in (x, y))
        if x.size != y.size or x.channels % 2:
            return self._joined(scope, [x, y])
        places = self._project(scope, x, self.channels, always=True)
        if self.rng.random() < 0.5:  # they have been added to their own stream before
            x = self._statement(scope, x, f"{x.name} + {places.name}")
        way = self.rng.choice(["channels", "sum"])
        joint = self._project(scope, self._join(scope, [x, y], "seq", way), self.channels)
        c = self.channels
        for _ in range(self.rng.choice([2, 3])):
            attend = scope.module(f"nn.MultiheadAttention({c}, 2, batch_first=True)", "attn")
            norm = scope.module(f"nn.LayerNorm({c})", "norm")
            q, z = scope.fresh("q"), scope.fresh()
            scope.body.append(f"{q} = {joint.name} + {places.name}")
            k = q if self.rng.random() < 0.5 else f"{joint.name} + {places.name}"
            scope.body.append(f"{z} = self.{attend}({q}, {k}, {joint.name}, need_weights=False)[0]")
            joint = self._statement(scope, joint, f"self.{norm}({joint.name} + {z})")
        return [joint]

    # -- time folded into the batch ---------------------------------------------------------------------------------

    def _meet_folded_rows(self, scope: Scope, x: Value, y: Value) -> list[Value]:
        """Each step of x with its step of y, as rows [B*L, C]; afterwards the sequence is put together again."""
        x, y = (self._widened(scope, self._as(scope, value, "seq"), self.channels) for value in (x, y))
        if x.size != y.size:
            return self._joined(scope, [x, y])
        length, rows = x.size, [self._folded(scope, value) for value in (x, y)]
        if self.rng.random() < 0.5:  # layers between, as an encoder of single frames has them
            rows = [self._project(scope, value, self.channels, always=True) for value in rows]
        way = self.rng.choice(["channels", "channels", "sum", "product", "bilinear"])
        joined = self._owner(scope, rows, lambda inner, values: self._join(inner, values, "vec", way))
        back = self.rng.choice(["{0}.view(-1, {1}, {2})", "{0}.unflatten(0, (-1, {1}))", "{0}.reshape(-1, {1}, {2})"])
        whole = replace(joined, layout="seq", size=length)
        return [self._statement(scope, whole, back.format(joined.name, length, joined.channels))]

    def _folded(self, scope: Scope, value: Value) -> Value:
        form = self.rng.choice(["{0}.flatten(0, 1)", "{0}.reshape(-1, {1})", "{0}.contiguous().view(-1, {1})"])
        row = replace(value, layout="vec", size=0)
        return self._statement(scope, row, form.format(value.name, value.channels))


def generate(seed: int | random.Random) -> Generated:
    """A random model, the same one for the same seed."""
    if isinstance(seed, int):
        return MoreMeetings(random.Random(seed), str(seed)).write()
    return MoreMeetings(seed).write()
