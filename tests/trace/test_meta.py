"""What the nodes of a traced graph say, and the graph as `torch.fx` knows graphs."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
import torch.fx
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from regbn_surgery import CaptureError, Inputs, InputsError, RegBNError, trace
from regbn_surgery._trace import calls_of, capture, operands_of, results_of, tensor_of

from .replay import make


class Both(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Twice(nn.Module):
    """A module called twice, a layer with several results, writes in place and views."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.rnn = nn.LSTM(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x, more):
        x, (state, _) = self.rnn(self.shared(x))
        flat = x.view(-1, 4)
        flat += self.scale
        flat[0] = 0
        return torch.concatenate([self.shared(x).sum(0), state[0], more["y"]], 1)


EXAMPLE = Inputs(torch.randn(3, 2, 4), {"y": torch.randn(2, 5)})


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return trace(Twice(), EXAMPLE)


def named(graph, operation):
    return [node for node in graph.nodes if node.meta.get("operation") == operation]


class TestMeta:
    def test_shapes_and_types_in_the_way_of_fx(self, graph):
        [cat] = named(graph, "cat")
        assert cat.meta["tensor_meta"].shape == torch.Size([2, 13])
        assert cat.meta["tensor_meta"].dtype == torch.float32
        [view] = named(graph, "view")
        assert view.meta["tensor_meta"].stride == (4, 1)
        assert all("tensor_meta" in node.meta for node in graph.nodes if "tensor" in node.meta)

    def test_memory_and_its_version(self, graph):
        [view], [added], [written] = (named(graph, name) for name in ("view", "add", "setitem"))
        [lstm] = named(graph, "LSTM")
        output = next(results_of(lstm))
        assert tensor_of(view).storage == tensor_of(output).storage == tensor_of(added).storage
        assert tensor_of(added).uid == tensor_of(view).uid != tensor_of(output).uid
        assert (view.meta["version"], added.meta["version"]) == (0, 1)
        assert [node.meta.get("inplace") for node in (view, added, written)] == [None, True, True]

    def test_module_stack(self, graph):
        linears = named(graph, "Linear")
        stacks = [list(node.meta["nn_module_stack"]) for node in linears]
        assert stacks == [["", "shared"], ["", "shared@1"]]
        assert linears[0].meta["nn_module_stack"]["shared"] == ("shared", nn.Sequential)
        assert [frame.path for frame in graph.output_node().meta["frames"]] == ["", "shared", "shared"]

    def test_places(self, graph):
        [cat] = named(graph, "cat")
        assert cat.meta["source"].file == __file__
        assert cat.meta["source"].function == "forward"
        assert cat.meta["stack_trace"] == f'File "{__file__}", line {cat.meta["source"].line}, in forward'

    def test_inputs_by_their_names(self, graph):
        assert {node.meta["input"] for node in graph.nodes if "input" in node.meta} == {"x", "more.y"}

    def test_operands_and_results(self, graph):
        calls = {call.name: call for call in calls_of(graph)}
        [lstm] = named(graph, "LSTM")
        assert [tensor_of(node).shape for node in results_of(lstm)] == [(3, 2, 4), (1, 2, 4), (1, 2, 4)]
        assert [node.meta["tensor_meta"].shape[-1] for _, node in operands_of(named(graph, "cat")[0])] == [4, 4, 5]
        assert calls["setitem"].outputs == calls["add"].outputs
        assert calls["add"].input_nodes[1].target == "scale"
        assert tensor_of(calls["add"].input_nodes[1]).parameter == "scale"
        assert [call.index for call in calls_of(graph)] == list(range(len(calls_of(graph))))

    def test_a_packed_sequence_counts_as_its_data(self):
        def forward(self, x):
            return self.rnn(pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True))[0].data

        [rnn] = named(trace(make(forward, rnn=nn.GRU(4, 4)), torch.randn(2, 3, 4)), "GRU")
        [(_, data)] = operands_of(rnn)
        assert tensor_of(data).shape == (5, 4)

    def test_another_object_of_the_same_memory_is_the_same_tensor(self):
        seen = []

        class Hidden(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, grad):
                return grad

        def forward(self, x):
            twin = torch.Tensor._make_subclass(torch.Tensor, x)
            seen.append(twin is x)
            return Hidden.apply(twin) + x

        found = capture(make(forward), (torch.ones(2),), {})[0]
        assert seen == [False]
        assert [call.inputs[0] for call in found.calls if call.name == "Hidden"] == [found.inputs[0][1]]

    def test_it_stays_the_same_tensor_for_modules_that_are_given_it(self):
        def forward(self, x):
            twin = torch.Tensor._make_subclass(torch.Tensor, x)
            return twin * 2 + self.child(twin)

        model = make(forward, child=make(lambda self, x: x + 1))
        found = capture(model, (torch.ones(2),), {})[0]
        assert found.frames[1].inputs == (("x", found.inputs[0][1]),)

    def test_containers_that_are_put_together_for_a_call(self):
        def forward(self, x, y):
            return self.same(Both(x, y)).first + 1

        [call] = named(trace(make(forward, same=nn.Identity()), (torch.ones(2, 3), torch.ones(2, 4))), "Identity")
        assert [tensor_of(node).shape for _, node in operands_of(call)] == [(2, 3), (2, 4)]

    def test_what_is_computed_again_for_the_backward_pass(self):
        def forward(self, x):
            return checkpoint(torch.sin, x, use_reentrant=False) + 1

        found = calls_of(trace(make(forward), torch.ones(2, 3), training=True))
        seen = [(call.name, call.checkpointed) for call in found if call.name != "empty"]  # torch's own, before 2.13
        assert seen == [("sin", True), ("add", False)]

    def test_what_is_computed_by_a_module_that_is_loaded_meanwhile_is_no_part_of_it(self, tmp_path, monkeypatch):
        """As torch loads its compiler for the first checkpoint, which computes with tensors as it is loaded."""
        (tmp_path / "computes_at_import.py").write_text("import torch\ntable = torch.arange(3).sin().cos()\n")
        monkeypatch.syspath_prepend(tmp_path)

        def forward(self, x):
            import computes_at_import

            return x + computes_at_import.table

        found = calls_of(trace(make(forward), torch.ones(2, 3)))
        assert [call.name for call in found] == ["add"]


class TestGraph:
    def test_it_is_a_graph_of_fx(self, graph, capsys):
        graph.lint()
        assert "call_module[target=rnn]" in str(graph)
        pytest.importorskip("tabulate")
        graph.print_tabular()
        assert "call_module" in capsys.readouterr().out

    def test_every_call_is_a_node_whoever_uses_it(self):
        def forward(self, x):
            _ = x * 3
            return x + 1

        assert [call.name for call in calls_of(trace(make(forward), torch.ones(2, 3)))] == ["mul", "add"]

    def test_sizes_are_numbers(self):
        def forward(self, x):
            return x.view(x.shape[0], -1).expand(x.size(0), x.numel() // 2)

        graph = trace(make(forward), torch.ones(2, 3))
        assert [node.args[1:] for node in graph.nodes if node.op == "call_method"] == [(2, -1), (2, 3)]

    def test_a_copy_says_the_same(self, graph):
        twin = copy.deepcopy(graph)
        assert [call.inputs for call in calls_of(twin)] == [call.inputs for call in calls_of(graph)]
        assert [node.meta.keys() for node in twin.nodes] == [node.meta.keys() for node in graph.nodes]


class TestTrace:
    def test_the_model_is_as_before(self):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        example, state = torch.randn(4, 3), torch.random.get_rng_state()
        trace(model, example, training=True)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])

    def test_modes(self):
        def forward(self, x):
            return x.exp() if self.training else x.sin()

        names = [[c.name for c in calls_of(trace(make(forward), torch.ones(2), training=t))] for t in (False, True)]
        assert names == [["sin"], ["exp"]]

    def test_examples_in_all_forms(self):
        def forward(self, x):
            return x + 1

        for example in (torch.ones(5, 2), (torch.ones(5, 2),), {"x": torch.ones(5, 2)}, Inputs(torch.ones(5, 2))):
            assert tensor_of(next(iter(trace(make(forward), example).nodes))).shape == (5, 2)
        sized = trace(make(forward), lambda batch: torch.ones(batch, 7))
        assert tensor_of(next(iter(sized.nodes))).shape[1] == 7

    def test_without_weights(self):
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        assert [c.name for c in calls_of(trace(model, torch.randn(2, 3)))] == ["Linear", "ReLU"]
        assert next(model.parameters()).is_meta

    def test_errors(self):
        with pytest.raises(RegBNError, match="must be an nn"):
            trace(lambda x: x, torch.ones(2))
        with pytest.raises(InputsError, match="do not fit"):
            trace(nn.Linear(3, 4), {"y": torch.ones(2, 3)})
        with pytest.raises(CaptureError, match="could not be run in evaluation mode"):
            trace(nn.Linear(3, 4), torch.ones(2, 5))
