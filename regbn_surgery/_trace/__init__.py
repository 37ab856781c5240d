"""Run a model's real forward and write down what happened as a `torch.fx` graph, whose nodes say it in their meta."""

from ._finite import strange_values
from ._intercept import intercepted, intercepting, listening
from ._meta import Call, Key, TensorInfo, calls_of, operands_of, results_of, tensor_of
from ._recorder import Recorder
from ._run import capture, capture_values
from ._source import is_user_file
from ._trace import Frame, Trace, ValueRead

__all__ = [
    "Call",
    "Frame",
    "Key",
    "Recorder",
    "TensorInfo",
    "Trace",
    "ValueRead",
    "calls_of",
    "capture",
    "capture_values",
    "intercepted",
    "intercepting",
    "is_user_file",
    "listening",
    "operands_of",
    "results_of",
    "strange_values",
    "tensor_of",
]
