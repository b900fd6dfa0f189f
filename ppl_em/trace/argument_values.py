"""Distribution arguments from a run of the program: what parameters feed through a network, say."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from ppl_em.ir import Factor, Program
from ppl_em.trace.footprint import isolated


def argument_values(
    program: Program, parameters: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, dict[str, Factor]]:
    """Compact values of all arguments of some sites, at given parameters.

    Args:
        program: the traced program.
        parameters: constrained values.
        names: the sites.
    """
    enumeration = program.runner
    with isolated(enumeration.source.seed), warnings.catch_warnings():
        records = enumeration.run(parameters)
    values: dict[str, dict[str, Factor]] = {}
    for name in names:
        record, scope = records[name], enumeration.scopes[name]
        values[name] = {}
        if record.peeled is not None:
            for argument, tensor in record.peeled.arguments.items():
                event_dim, inner = record.peeled.event_dims[argument], record.peeled.inner
                values[name][argument] = enumeration.layout.name_dims(record, tensor, event_dim, inner, scope)
    return values
