"""A first rules file for a model: inspects it and writes the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ._analysis import analyse
from ._facts import find_facts
from ._inputs import InputsLike, find_inputs, make_batches
from ._inspecting import refuse_rewritten, refuse_wrapped, spelt_modalities
from ._misfits import refusing_strange_names
from ._plan.starter import starter
from ._types import Modality


@refusing_strange_names
def starter_rules(
    model: nn.Module,
    example_inputs: InputsLike | None = None,
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any] | Modality] | None = None,
) -> str:
    """A commented rules file for `model`, which `plan` and `regbnify` accept as it is. Arguments as for `inspect`.

    Raises PlanError where there is no fusion point that RegBN could go to.
    """
    refuse_wrapped(model)
    refuse_rewritten(model)
    example = find_inputs(model, example_inputs)
    analysis = analyse(model, make_batches(model, example), spelt_modalities(modalities))
    return starter(analysis.inspection, find_facts(model, analysis))
