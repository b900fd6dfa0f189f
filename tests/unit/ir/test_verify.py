"""The verifier passes what the tracer makes and names what is wrong in what it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import ppl_em
from ppl_em.ir import Factor, Latent, Program
from ppl_em.ir.verify import MalformedProgram, verify_block, verify_program
from ppl_em.testing import random_program
from tests.unit.programs import chain, mixture, two_kinds

X = two_kinds(8)


@pytest.mark.parametrize("seed", range(25))
def test_random_programs_pass(seed: int) -> None:
    program = random_program(seed)
    plan = ppl_em.explain(program, program.data)
    assert verify_program(plan.program) is plan.program
    for entry in plan.blocks:
        assert verify_block(entry.block, plan.program) is entry.block


def traced() -> Program:
    return ppl_em.explain(mixture, X).program


def with_site(program: Program, name: str, **changes: Any) -> Program:
    return replace(program, sites={**program.sites, name: replace(program.sites[name], **changes)})


def with_argument(program: Program, **changes: Any) -> Program:
    site = program.sites["x"]
    arguments = {**site.arguments, "loc": replace(site.arguments["loc"], **changes)}
    return with_site(program, "x", arguments=arguments)


def with_link(program: Program, **changes: Any) -> Program:
    (link,) = program.sites["x"].arguments["loc"].links
    return with_argument(program, links=(replace(link, **changes),))


FAULTS = {
    "site 'x': dimension 'w' has no size": lambda p: with_site(p, "x", dims=("z", "data", "w")),
    "scope .* are missing": lambda p: with_site(p, "x", dims=("data",)),
    "scope names 'w', no latent": lambda p: with_site(p, "x", scope=("z", "w"), dims=("z", "w", "data")),
    "value: 'data' has size 3, not 8": lambda p: with_site(p, "x", value=Factor(torch.zeros(3), ("data",))),
    "'other' is neither a named": lambda p: with_site(p, "x", value=Factor(torch.zeros(3), ("other",))),
    "the mask is torch.float64": lambda p: with_site(p, "x", mask=Factor(torch.ones(8), ("data",))),
    "scale: 'z' is none|scale varies|scale": lambda p: with_site(p, "z", scale=Factor(torch.ones(5), ("data",))),
    "index beyond": lambda p: with_link(p, index=torch.tensor([0, 2])),
    "links to 'nothing'": lambda p: with_link(p, parameter="nothing"),
    "index \\(3,\\), value \\(2,\\)": lambda p: with_link(p, index=torch.tensor([0, 1, 0])),
    "slope without offset": lambda p: with_link(p, slope=torch.ones(2)),
    "lowered, but not": lambda p: with_argument(p, links=(), sources=frozenset({"loc"})),
    "parameter 'nothing' does not exist": lambda p: with_site(p, "x", parameters=frozenset({"nothing"})),
    "neither a point estimate": lambda p: with_site(p, "x", point="loc"),
    "'z' is called 'y'": lambda p: replace(p, latents={"z": replace(p.latents["z"], name="y")}),
    "no support": lambda p: replace(p, latents={"z": replace(p.latents["z"], support=None)}),
    "support .* for events": lambda p: replace(p, latents={"z": replace(p.latents["z"], event_shape=(2,))}),
    "no site of its own": lambda p: replace(
        p, latents={**p.latents, "w": Latent("w", "discrete", (), support=torch.arange(2))}
    ),
    "does not come before": lambda p: replace(p, latents={"z": replace(p.latents["z"], parents=("w",))}),
    "plate 'w' does not exist": lambda p: replace(p, latents={"z": replace(p.latents["z"], plates=("w",))}),
    "data plate 'w'": lambda p: replace(p, data_plate="w"),
}


@pytest.mark.parametrize("complaint", FAULTS)
def test_a_broken_program_is_refused(complaint: str) -> None:
    with pytest.raises(MalformedProgram, match=complaint):
        verify_program(FAULTS[complaint](traced()))


def test_a_broken_stack_is_refused() -> None:
    plan = ppl_em.explain(chain, X)
    (entry,) = plan.blocks
    block, program = entry.block, plan.program
    site = next(s for s in block.sites if len(s.members) > 1)
    fewer = replace(block, times={**block.times, site.name: block.times[site.name][1:]})
    with pytest.raises(MalformedProgram, match="members but times"):
        verify_block(fewer, program)
    with pytest.raises(MalformedProgram, match="shared plate"):
        verify_block(replace(block, plates=("w",), sizes={**block.sizes, "w": 2}), program)
    with pytest.raises(MalformedProgram, match="the scale varies"):
        verify_block(replace(block, scale=Factor(torch.ones(8), ("data",))), program)
