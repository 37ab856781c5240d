"""A class of an instance's own, for a while or for good, made without its class noticing."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Generic


class _Quiet:
    """Stands before the class among the bases, so that its `__init_subclass__` (which may register) is not asked.

    Without slots: a class that adds the same to `object` as `nn.Module` does can be exchanged for it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


def quiet_subclass(cls: Any, body: Mapping[str, Any]) -> Any:
    """A subclass of `cls` by the same name, whose making neither `cls` nor its metaclass hears of."""
    meta = type(cls)
    make: Any = abc.ABCMeta.__new__ if issubclass(meta, abc.ABCMeta) else type.__new__
    named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, **body}
    asked = next(base for base in cls.__mro__ if "__init_subclass__" in vars(base))
    notices = asked not in (object, Generic, _Quiet)
    return make(meta, cls.__name__, (_Quiet, cls) if notices else (cls,), named)
