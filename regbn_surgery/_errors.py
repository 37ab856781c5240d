"""Every error the library raises on purpose.

One base class, so that a caller can catch all of them and the command line can print them without a traceback.
A message says what was asked, what was found, where, and what to do next.
"""

from __future__ import annotations

from ._visible import visible


class RegBNError(Exception):
    """Base class of every error raised on purpose by `regbn_surgery`."""

    #: What the command line exits with: 2 is a usage or input error, 1 a finding (a rule that matched nothing).
    exit_code = 2

    def __str__(self) -> str:
        return visible(super().__str__())


class InputsError(RegBNError):
    """Example inputs are missing, do not fit the model's `forward`, or have no usable batch axis."""


class CaptureError(RegBNError):
    """The model's forward could not be run, or could not be recorded as a graph."""


class RulesError(RegBNError):
    """A rules file cannot be read, or its content is not valid. Lists every problem with line and column."""


class PlanError(RegBNError):
    """The rules are well formed but cannot be applied to this model."""


class NothingMatchedError(PlanError):
    """A rule matched no fusion point (exit code 1, not a usage error)."""

    exit_code = 1


class RewriteError(RegBNError):
    """The surgery could not be done faithfully; the model has been left as it was."""


class AlreadyRewrittenError(RewriteError):
    """The model, or the same place in it, already contains a RegBN module."""


class RecipeError(RewriteError):
    """A recipe cannot be made, cannot be read, or does not fit the model it is applied to, which is as it was."""


class UnseenCallError(RewriteError):
    """A rewritten host was called in a way for which no variant exists and none can be made now."""


class RegBNBypassedError(RewriteError):
    """A call of a rewritten model would fuse its branches, or continue from a cache of fused ones, without RegBN."""


class RegBNShapeError(RegBNError, ValueError):
    """Inputs or sizes given to a `RegBN` module do not fit it."""


class RegBNOptionError(RegBNError, ValueError):
    """An option of a `RegBN` module is out of range, or contradicts another one."""


class RegBNWarning(UserWarning):
    """Something worth knowing that does not stop the work."""

    def __str__(self) -> str:
        return visible(super().__str__())
