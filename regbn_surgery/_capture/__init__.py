"""Run a model's real forward and write down what happened: a `torch.fx` graph and a list of operations."""

from ._intercept import intercepted, intercepting
from ._recorder import Recorder
from ._run import capture, capture_values
from ._source import is_user_file
from ._trace import Frame, Op, TensorInfo, TensorRef, Trace, ValueRead

__all__ = [
    "Frame",
    "Op",
    "Recorder",
    "TensorInfo",
    "TensorRef",
    "Trace",
    "ValueRead",
    "capture",
    "capture_values",
    "intercepted",
    "intercepting",
    "is_user_file",
]
