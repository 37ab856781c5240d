"""What happens within one stream: layers, activations, views and reshapes, none of which may count as a meeting."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

from ._scope import Scope, Value, class_text, marked, unmarked


class Steps:
    """The part of the writer that knows one stream at a time."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.classes: list[str] = []
        self.twins: list[str] = []  # the classes again, with the joins marked
        self.serial = itertools.count()
        self.depth = 0
        self.channels = 4

    def _class(self, name: str, scope: Scope, signature: str) -> None:
        self.classes.append(class_text(name, scope, signature, unmarked))
        self.twins.append(class_text(name, scope, signature, marked))

    def _branch(self, scope: Scope, value: Value, steps: int | None = None) -> Value:
        for _ in range(self.rng.choice([0, 1, 1, 2, 3]) if steps is None else steps):
            value = self._step(scope, value)
        return value

    def _step(self, scope: Scope, value: Value) -> Value:
        general = [
            "activation",
            "dropout",
            "residual",
            "scale",
            "linear",
            "norm",
            "linear",
            "where",
            "inplace",
            "shuffle",
            "cast",
            "functional",
            "roll",
            "checkpoint",
            "mapped",
        ]
        special = {
            "vec": ["slice", "unsqueeze", "loop", "block", "shared", "regroup", "normalize", "batchnorm", "codes",
                    "levels"],
            "seq": ["selfattention", "recurrent", "conv1d", "position", "token", "encoder", "loop", "block", "slice",
                    "regroup", "flip", "folded", "context", "pool1d", "gather",
                    "codes", "levels"],
            "first": ["selfattention", "recurrent", "loop", "block", "turn"],
            "map": ["batchnorm", "groupnorm", "pool", "conv_residual", "block", "last_norm", "shared",
                    "interpolate", "patches", "last_linear", "squeeze_excite"],
        }[value.layout]  # fmt: skip
        step = self.rng.choice(general + special)
        if step in ("shuffle", "slice", "regroup") and value.channels % 2:
            step = "activation"
        method: Callable[[Scope, Value], Value] = getattr(self, f"_step_{step}")
        return method(scope, value)

    def _statement(self, scope: Scope, value: Value, expression: str) -> Value:
        name = scope.fresh()
        scope.body.append(f"{name} = {expression}")
        return replace(value, name=name)

    def _apply(self, scope: Scope, value: Value, module: str) -> Value:
        made = self._statement(scope, value, f"self.{scope.module(module)}({value.name})")
        layer = module.startswith(("nn.Linear", "nn.Conv", "nn.LayerNorm", "nn.BatchNorm", "nn.GroupNorm"))
        return replace(made, squashed=False) if layer else made

    def _mixing(self, value: Value, out: int | None = None) -> str:
        out = out or value.channels
        return (
            f"nn.Conv2d({value.channels}, {out}, 1)" if value.layout == "map" else f"nn.Linear({value.channels}, {out})"
        )

    def _project(self, scope: Scope, value: Value, out: int, always: bool = False) -> Value:
        if value.channels == out and not always and self.rng.random() < 0.5:
            return value
        return replace(self._apply(scope, value, self._mixing(value, out)), channels=out)

    def _step_activation(self, scope: Scope, v: Value) -> Value:
        call = self.rng.choice(["F.relu({0})", "{0}.tanh()", "torch.sigmoid({0})", "F.leaky_relu({0}, 0.1)", "M"])
        if call == "M":
            return self._apply(
                scope, v, self.rng.choice(["nn.ReLU()", "nn.GELU()", "nn.SiLU()", "nn.ReLU(inplace=False)"])
            )
        squashed = v.squashed or "tanh" in call or "sigmoid" in call
        return replace(self._statement(scope, v, call.format(v.name)), squashed=squashed)

    def _step_dropout(self, scope: Scope, v: Value) -> Value:
        if self.rng.random() < 0.5:
            return self._apply(scope, v, "nn.Dropout(0.3)")
        return self._statement(scope, v, f"F.dropout({v.name}, 0.3, self.training)")

    def _step_cast(self, scope: Scope, v: Value) -> Value:
        forms = ["{0}.double().float()", "{0}.contiguous()", "{0}.to({0}.dtype)", "{0}.to(torch.float32)",
                 "torch.abs({0})", "{0}.view({0}.shape)", "{0}.type_as({0})",
                 "{0}.detach() + {0} - {0}.detach()"]  # fmt: skip
        return self._statement(scope, v, self.rng.choice(forms).format(v.name))

    def _step_roll(self, scope: Scope, v: Value) -> Value:
        forms = [
            "{0}.roll(1, -1)",
            "torch.flip({0}, [-1])",
            "torch.cumsum({0}, -1)",
            "{0}.softmax(-1)",
            "{0}.sort(dim=-1).values",
        ]
        call = self.rng.choice(forms)
        return replace(self._statement(scope, v, call.format(v.name)), squashed=v.squashed or "softmax" in call)

    def _step_checkpoint(self, scope: Scope, v: Value) -> Value:
        name = scope.module(self._mixing(v))
        return replace(
            self._statement(scope, v, f"checkpoint(self.{name}, {v.name}, use_reentrant=False)"), squashed=False
        )

    def _step_mapped(self, scope: Scope, v: Value) -> Value:
        """A function of one sample, mapped over the batch."""
        form = self.rng.choice(["lambda row: row * 2 - 1", "lambda row: row - row.mean()", "torch.abs"])
        return self._apply(scope, v, f"Mapped({form}, {1 if v.layout == 'first' else 0})")

    def _step_functional(self, scope: Scope, v: Value) -> Value:
        """Layers spelled as functions of parameters."""
        c = v.channels
        if v.layout == "map":
            name = scope.module(f"nn.Parameter(torch.randn({c}, {c}, 1, 1) / {c})", "w")
            return self._statement(scope, v, f"F.conv2d({v.name}, self.{name})")
        name = scope.module(f"nn.Parameter(torch.randn({c}, {c}) / {c})", "w")
        forms = ["F.linear({0}, self.{1})", "{0} @ self.{1}", "torch.matmul({0}, self.{1}.t())",
                 'torch.einsum("...c,cd->...d", {0}, self.{1})', "F.layer_norm({0} @ self.{1}, ({2},))"]  # fmt: skip
        return self._statement(scope, v, self.rng.choice(forms).format(v.name, name, c))

    def _step_folded(self, scope: Scope, v: Value) -> Value:
        """Positions folded into the batch and unfolded again."""
        name = scope.module(f"nn.Linear({v.channels}, {v.channels})")
        flat = scope.fresh()
        scope.body.append(f"{flat} = self.{name}({v.name}.reshape(-1, {v.channels}))")
        form = self.rng.choice(
            ["{1}.view({0}.size(0), {0}.size(1), -1)", "{1}.view({0}.shape)", "{1}.reshape({0}.shape[0], -1, {2})"]
        )
        return self._statement(scope, v, form.format(v.name, flat, v.channels))

    def _step_context(self, scope: Scope, v: Value) -> Value:
        forms = ["{0} - {0}.mean(1, keepdim=True)", "{0} + {0}.max(1, keepdim=True).values.expand_as({0})",
                 "{0} * {0}.mean(dim=(1, 2), keepdim=True)"]  # fmt: skip
        return self._statement(scope, v, self.rng.choice(forms).format(v.name))

    def _step_pool1d(self, scope: Scope, v: Value) -> Value:
        if v.size < 3:  # a single position is no sequence: what attends to it adds a vector
            return v
        call = f"F.avg_pool1d({v.name}.transpose(1, 2), 2, 1).transpose(1, 2)"
        return replace(self._statement(scope, v, call), size=v.size - 1)

    def _step_gather(self, scope: Scope, v: Value) -> Value:
        if v.size < 2:
            return v
        forms = ["{0}[:, [1, 0]]", "{0}.index_select(1, torch.tensor([1, 0], device={0}.device))", "{0}[:, :2]",
                 "torch.stack([{0}[:, 1], {0}[:, 0]], 1)"]  # fmt: skip
        return replace(self._statement(scope, v, self.rng.choice(forms).format(v.name)), size=2)

    def _step_patches(self, scope: Scope, v: Value) -> Value:
        if v.size != 4:
            return v
        return replace(self._apply(scope, v, f"nn.Conv2d({v.channels}, {v.channels}, 2, stride=2)"), size=2)

    def _step_last_linear(self, scope: Scope, v: Value) -> Value:
        name = scope.module(f"nn.Linear({v.channels}, {v.channels})")
        return self._statement(scope, v, f"torch.movedim(self.{name}(torch.movedim({v.name}, 1, -1)), -1, 1)")

    def _step_squeeze_excite(self, scope: Scope, v: Value) -> Value:
        name = scope.module(f"nn.Linear({v.channels}, {v.channels})", "se")
        call = f"{v.name} * torch.sigmoid(self.{name}({v.name}.mean((2, 3))))[:, :, None, None]"
        return self._statement(scope, v, call)

    def _step_residual(self, scope: Scope, v: Value) -> Value:
        name = scope.module(self._mixing(v))
        return self._statement(scope, v, f"{v.name} + F.relu(self.{name}({v.name}))")

    def _step_scale(self, scope: Scope, v: Value) -> Value:
        if v.layout != "map" and self.rng.random() < 0.5:
            name = scope.module(f"nn.Parameter(torch.rand({v.channels}) + 0.5)", "gain")
            return self._statement(scope, v, f"{v.name} * self.{name}")
        return self._statement(
            scope, v, self.rng.choice(["{0} * 0.5", "{0} / math.sqrt({0}.shape[-1])", "2 * {0} - 1"]).format(v.name)
        )

    def _step_linear(self, scope: Scope, v: Value) -> Value:
        out = self.rng.choice([4, 6, 8])
        return replace(self._apply(scope, v, self._mixing(v, out)), channels=out)

    def _step_norm(self, scope: Scope, v: Value) -> Value:
        if v.layout == "map":
            return self._apply(scope, v, f"nn.BatchNorm2d({v.channels})")
        return self._apply(scope, v, f"nn.LayerNorm({v.channels})")

    def _step_where(self, scope: Scope, v: Value) -> Value:
        form = self.rng.choice(
            ["torch.where({0} > 0, {0}, 0.1 * {0})", "{0}.masked_fill({0} < -1, 0.0)", "{0}.clamp(-2, 2)"]
        )
        return self._statement(scope, v, form.format(v.name))

    def _step_inplace(self, scope: Scope, v: Value) -> Value:
        copy = self._statement(scope, v, f"{v.name}.clone()")
        forms = [["{0} += 1"], ["{0}.mul_(0.5)"], ["{0}[0] = 2 * {0}[0]"], ["F.relu({0}, inplace=True)"],
                 ["{0}[..., 0] *= 2"], ["part = {0}[..., :2]", "part.add_(1)"]]  # fmt: skip
        lines = self.rng.choice(forms)
        scope.body.extend(line.format(copy.name) for line in lines)
        return copy

    def _step_shuffle(self, scope: Scope, v: Value) -> Value:
        """Halves of the channels change places."""
        axis = {"vec": 1, "map": 1}.get(v.layout, 2)
        left, right = scope.fresh(), scope.fresh()
        scope.body.append(f"{left}, {right} = {v.name}.chunk(2, dim={axis})")
        return self._statement(scope, v, f"torch.cat([{right}, {left}], dim={axis})")

    def _step_slice(self, scope: Scope, v: Value) -> Value:
        half = v.channels // 2
        if half < 2:
            return v
        form = self.rng.choice(["{0}[..., :{1}]", "{0}.narrow(-1, 0, {1})", "{0}[..., {1}:]"])
        sliced = replace(self._statement(scope, v, form.format(v.name, half)), channels=half)
        return self._project(scope, sliced, self.channels)

    def _step_unsqueeze(self, scope: Scope, v: Value) -> Value:
        form = self.rng.choice(
            ["{0}.unsqueeze(1).squeeze(1)", "{0}[:, None].mean(1)", "{0}.view({0}.size(0), -1, 2).flatten(1)"]
        )
        if "view" in form and v.channels % 2:
            return v
        return self._statement(scope, v, form.format(v.name))

    def _step_loop(self, scope: Scope, v: Value) -> Value:
        """A ModuleList walked by a loop."""
        n = self.rng.choice([2, 3])
        name = scope.module(f"nn.ModuleList(nn.Linear({v.channels}, {v.channels}) for _ in range({n}))", "layers")
        out = self._statement(scope, v, f"{v.name} * 1.0")
        scope.body.append(f"for layer in self.{name}:")
        body = self.rng.choice(["{0} = layer({0}).tanh()", "{0} = {0} + layer({0})"])
        scope.body.append("    " + body.format(out.name))
        return replace(out, squashed="tanh" in body)

    def _step_block(self, scope: Scope, v: Value) -> Value:
        """A nested submodule, sometimes in a Sequential."""
        self.depth += 1
        if self.depth > 3:
            self.depth -= 1
            return v
        cls = f"Block{next(self.serial)}"
        name = scope.fresh("block")
        inner = Scope(scope.under(name))
        out = self._branch(inner, replace(v, name="a0"), self.rng.choice([1, 2]))
        inner.body.append(f"return {out.name}")
        self._class(cls, inner, "self, a0")
        self.depth -= 1
        wrapped = f"nn.Sequential({cls}())" if self.rng.random() < 0.3 else f"{cls}()"
        scope.init.append(f"self.{name} = {wrapped}")
        return self._statement(scope, out, f"self.{name}({v.name})")

    def _step_shared(self, scope: Scope, v: Value) -> Value:
        name = scope.module(self._mixing(v), "shared")
        return self._statement(scope, v, f"self.{name}(F.relu(self.{name}({v.name})))")

    def _step_regroup(self, scope: Scope, v: Value) -> Value:
        """Heads and back."""
        if v.layout == "vec":
            form = "{0}.reshape(-1, 2, {1}).transpose(1, 2).reshape({0}.shape[0], -1)"
        else:
            form = "{0}.view(*{0}.shape[:2], 2, {1}).permute(0, 2, 1, 3).transpose(1, 2).flatten(2)"
        grouped = self._statement(scope, v, form.format(v.name, v.channels // 2))
        return self._project(scope, grouped, self.channels, always=True)

    def _step_codes(self, scope: Scope, v: Value) -> Value:
        """The nearest code of a book stands for the features; gradients go straight through."""
        c = v.channels
        book, table = (scope.module(f"nn.Embedding(5, {c})", label) for label in ("book", "table"))
        codes, found = scope.fresh("codes"), scope.fresh()
        scores = f"{v.name} @ self.{book}.weight.t()"
        nearest = self.rng.choice(
            [f"({scores}).argmax(-1)", f"torch.argmin(-({scores}), dim=-1)", f"({scores}).topk(1, -1).indices[..., 0]",
             f"({scores}).max(dim=-1).indices", f"({scores}).sort(-1)[1][..., -1]"]
        )  # fmt: skip
        looked_up = self.rng.choice(
            [f"self.{table}({codes})", f"self.{table}.weight[{codes}]",
             f"F.one_hot({codes}, 5).float() @ self.{table}.weight",
             f"self.{table}.weight.index_select(0, {codes}.flatten()).view({v.name}.shape)"]
        )  # fmt: skip
        scope.body += [f"{codes} = {nearest}", f"{found} = {looked_up}"]
        return self._statement(scope, v, f"{v.name} + 0.5 * ({found} - {v.name}).detach()")

    def _step_levels(self, scope: Scope, v: Value) -> Value:
        """Each feature by its level alone, as a table has it."""
        table, codes = scope.module("nn.Embedding(6, 1)", "levels"), scope.fresh("codes")
        made = self.rng.choice(
            [f"torch.bucketize({v.name}.detach(), torch.linspace(-1, 1, 5))",
             f"(3 + 2 * {v.name}.tanh()).round().long()",
             f"({v.name}[..., None] * torch.linspace(-1, 1, 6)).argmax(-1)"]
        )  # fmt: skip
        scope.body.append(f"{codes} = {made}")
        looked_up = self.rng.choice(
            ["self.{0}({1}).squeeze(-1)", "self.{0}.weight[{1}, 0]",
             "(F.one_hot({1}, 6).float() @ self.{0}.weight)[..., 0]",
             "torch.take(self.{0}.weight, {1})"]
        )  # fmt: skip
        return replace(self._statement(scope, v, looked_up.format(table, codes)), squashed=False)

    def _step_normalize(self, scope: Scope, v: Value) -> Value:
        return self._statement(
            scope,
            v,
            self.rng.choice(["F.normalize({0}, dim=-1)", "{0} / ({0}.norm(dim=1, keepdim=True) + 1)"]).format(v.name),
        )

    def _step_batchnorm(self, scope: Scope, v: Value) -> Value:
        return self._apply(scope, v, f"nn.BatchNorm{'1d' if v.layout == 'vec' else '2d'}({v.channels})")

    def _step_selfattention(self, scope: Scope, v: Value) -> Value:
        if v.channels % 2:
            return v
        name = scope.module(f"nn.MultiheadAttention({v.channels}, 2, batch_first={v.layout == 'seq'})", "attn")
        tail = self.rng.choice(["[0]", "[0] + {0}"]).format(v.name)
        return self._statement(scope, v, f"self.{name}({v.name}, {v.name}, {v.name}){tail}")

    def _step_recurrent(self, scope: Scope, v: Value) -> Value:
        cell = self.rng.choice(["GRU", "LSTM", "RNN"])
        name = scope.module(f"nn.{cell}({v.channels}, {v.channels}, batch_first={v.layout == 'seq'})", "rnn")
        return self._statement(scope, v, f"self.{name}({v.name})[0]")

    def _step_conv1d(self, scope: Scope, v: Value) -> Value:
        name = scope.module(f"nn.Conv1d({v.channels}, {v.channels}, 3, padding=1)", "conv")
        return self._statement(scope, v, f"self.{name}({v.name}.transpose(1, 2)).transpose(1, 2)")

    def _step_position(self, scope: Scope, v: Value) -> Value:
        name = scope.module(f"nn.Parameter(torch.randn(1, {v.size}, {v.channels}))", "pos")
        return self._statement(scope, v, f"{v.name} + self.{name}")

    def _step_token(self, scope: Scope, v: Value) -> Value:
        name = scope.module(f"nn.Parameter(torch.randn(1, 1, {v.channels}))", "cls")
        call = f"torch.cat([self.{name}.expand({v.name}.size(0), -1, -1), {v.name}], dim=1)"
        return replace(self._statement(scope, v, call), size=v.size + 1)

    def _step_encoder(self, scope: Scope, v: Value) -> Value:
        return self._apply(scope, v, f"nn.TransformerEncoderLayer({v.channels}, 2, 8, batch_first=True)")

    def _step_flip(self, scope: Scope, v: Value) -> Value:
        return self._statement(scope, v, f"{v.name}.flip(1)")

    def _step_turn(self, scope: Scope, v: Value) -> Value:
        return replace(self._statement(scope, v, f"{v.name}.transpose(0, 1)"), layout="seq")

    def _step_groupnorm(self, scope: Scope, v: Value) -> Value:
        return self._apply(scope, v, f"nn.GroupNorm(2, {v.channels})") if v.channels % 2 == 0 else v

    def _step_pool(self, scope: Scope, v: Value) -> Value:
        if v.size != 4:
            return v
        return replace(self._apply(scope, v, self.rng.choice(["nn.MaxPool2d(2)", "nn.AvgPool2d(2)"])), size=2)

    def _step_conv_residual(self, scope: Scope, v: Value) -> Value:
        c = v.channels
        name = scope.module(f"nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1), nn.BatchNorm2d({c}), nn.ReLU())")
        return self._statement(scope, v, f"self.{name}({v.name}) + {v.name}")

    def _step_last_norm(self, scope: Scope, v: Value) -> Value:
        """ConvNeXt's LayerNorm over channels: to the last axis and back."""
        name = scope.module(f"nn.LayerNorm({v.channels})", "norm")
        return self._statement(scope, v, f"self.{name}({v.name}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")

    def _step_interpolate(self, scope: Scope, v: Value) -> Value:
        return replace(self._statement(scope, v, f"F.interpolate({v.name}, size=(4, 4))"), size=4)

    # -- bringing streams to one layout ----------------------------------------------------------------------------

    def _as(self, scope: Scope, v: Value, layout: str) -> Value:
        if layout == "vec":
            return self._pooled(scope, v)
        if layout == "seq":
            return self._tokens(scope, v)
        if v.layout == "map" and v.size != 2:
            v = replace(self._statement(scope, v, f"F.adaptive_avg_pool2d({v.name}, 2)"), size=2)
        return v

    def _pooled(self, scope: Scope, v: Value) -> Value:
        if v.layout == "vec":
            return v
        ways = {
            "seq": ["{0}.mean(1)", "{0}[:, 0]", "{0}[:, -1]", "{0}.max(dim=1).values", "{0}.sum(dim=1)", "{0}.amax(1)"],
            "first": ["{0}.mean(0)", "{0}[0]", "{0}[-1]", "{0}.max(0)[0]"],
            "map": ["{0}.mean((2, 3))", "F.adaptive_avg_pool2d({0}, 1).flatten(1)", "{0}.flatten(2).mean(2)",
                    "{0}.mean([-2, -1])", "{0}.amax(dim=(2, 3))"],
        }[v.layout]  # fmt: skip
        return replace(self._statement(scope, v, self.rng.choice(ways).format(v.name)), layout="vec", size=0)

    def _tokens(self, scope: Scope, v: Value) -> Value:
        if v.layout == "seq":
            return v
        if v.layout == "first":
            return replace(self._statement(scope, v, f"{v.name}.transpose(0, 1)"), layout="seq")
        if v.layout == "map":
            call = self.rng.choice(["{0}.flatten(2).transpose(1, 2)", "{0}.permute(0, 2, 3, 1).flatten(1, 2)"])
            return replace(self._statement(scope, v, call.format(v.name)), layout="seq", size=v.size * v.size)
        name = scope.module(f"nn.Linear({v.channels}, {2 * v.channels})", "expand")
        call = f"self.{name}({v.name}).view(-1, 2, {v.channels})"
        return replace(self._statement(scope, v, call), layout="seq", size=2)

    def _widened(self, scope: Scope, v: Value, channels: int) -> Value:
        return v if v.channels == channels else self._project(scope, v, channels)
