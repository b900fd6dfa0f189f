"""The plan in print: like a database's EXPLAIN, one line for each decision and its reason."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_em.ir.block import Block
    from ppl_em.plan.choice import BlockPlan
    from ppl_em.plan.plan import Plan
    from ppl_em.plan.structured import StructuredSite


def render(plan: Plan) -> str:
    """The plan as text; the same shapes give the same text."""
    lines = [f"Plan: {_headline(plan)}"]
    program = plan.program
    plates = [f"{p.name}={p.size}" + ("" if p.declared else " (undeclared)") for p in program.plates.values()]
    if plates:
        lines.append(f"  plates     {', '.join(plates)}")
    if plan.parts:
        lines.append(f"  data       {plan.parts}")
    lines.append("E-step")
    for block in plan.blocks:
        lines += _block(block)
    for site in plan.structured:
        lines += _structured(site)
    if plan.points:
        space = " in unconstrained coordinates" if plan.map_space == "unconstrained" else ""
        lines.append(f"  point      {_names(plan.points)}: global, continuous; maximum a posteriori{space}")
    for name, engine in plan.approximated.items():
        lines.append(f"  {engine:<10} {name}: {plan.reasons[name]}")
    if not (plan.blocks or plan.approximated or plan.structured):
        lines.append("  none: no local latents, plain maximum " + ("a posteriori" if plan.points else "likelihood"))
    lines.append("M-step")
    for update in plan.updates:
        names = ", ".join(f"{n}{_shape(plan, n)}" for n in update.parameters)
        if update.by == "variational":
            lines.append(f"  {update.rule} q({names}) = {update.family}, from {_names(update.sites)}")
            continue
        where = f" of {update.family} at {_names(update.sites)}" if update.family else ""
        lines.append(f"  {update.rule:<13} {names}{where}")
        if update.why:
            lines += [f"                because {part}" for part in update.why.split("; ")]
        if update.stub:
            lines.append("                a rule to fill in, paste and register:")
            lines += [f"                | {line}".rstrip() for line in update.stub.splitlines()]
    if not plan.updates:
        lines.append("  nothing to estimate")
    certificate = plan.certificate
    lines.append("Exactness: " + ("claimed" if plan.exact else "not claimed"))
    lines += [f"  {name:<10} {text}" for name, text in certificate.witnesses.items()]
    lines += [f"  unproven   {text}" for text in certificate.unproven]
    if any(s.role == "factor" for s in plan.sites()):
        lines.append("  note       pyro.factor terms: the objective is not a normalised likelihood")
    lines += [f"  note       {text}" for text in program.notes]
    return "\n".join(lines)


def render_html(plan: Plan) -> str:
    """The plan for a notebook."""
    colour = "#009E73" if plan.exact else "#D55E00"
    return (
        f'<div style="border-left:4px solid {colour};padding:2px 10px">'
        f'<pre style="margin:0;white-space:pre-wrap;font-size:0.9em">{html.escape(render(plan))}</pre></div>'
    )


def _headline(plan: Plan) -> str:
    if plan.method == "svi" and not plan.approximated:
        return "gradient ascent of the exact objective" + (" (every latent is summed)" if plan.blocks else "")
    if plan.approximated and plan.method == "em":
        return "variational Bayes EM (sums exact, factors of the global latents mean-field)"
    if plan.approximated:
        return "variational inference" + (" with some latents summed exactly" if plan.blocks else "")
    if plan.blocks or plan.structured:
        return "exact EM" if plan.exact else "EM, exactness unproven"
    return "direct maximisation (no latents to sum)"


def _block(entry: BlockPlan) -> list[str]:
    block = entry.block
    latents = ", ".join(f"{d}={n}" for d, n in _latent_sizes(entry))
    plates = [f"{p}={block.sizes[p]}" for p in block.plates]
    over = f" for each of {' × '.join(plates)}" if plates else ""
    lines = [f"  {entry.engine.name:<10} sum out {latents}{over}"]
    if block.slices is not None:
        lines.append(f"             {_grouping(block)}")
    lines.append(f"             predicted {_si(entry.flops)}flop, {_si(entry.bytes)}B per E-step")
    sites = ", ".join(_stack_name(s.members) for s in block.sites)
    lines.append(f"             factors {sites}")
    lines += [f"             not {name}: {why}" for name, why in entry.rejected]
    if block.alive:
        lines.append("             masked elements without observed descendants do not count in the M-step")
    return lines


def _structured(entry: StructuredSite) -> list[str]:
    sizes = " × ".join(f"{d.split('@')[0]}={n}" for d, n in entry.sizes.items())
    over = f" for each of {sizes}" if sizes else ""
    return [
        f"  structured sum out the hidden structure of {entry.family} at {entry.name}{over}",
        f"             predicted {_si(entry.flops)}flop, {_si(entry.bytes)}B per E-step",
        f"             counts the use of {', '.join(entry.counted)}",
    ]


def _grouping(block: Block) -> str:
    """How the latents of a chain are grouped, in words."""
    slices = block.slices
    assert slices is not None
    states = math.prod(block.sizes[slices.now[i]] for i in slices.linked)
    text = f"one chain of {len(slices.table)} joint states, {states} values each"
    if slices.history > 1:
        text += f", over {slices.history} steps"
    if slices.private:
        text += f"; {', '.join(slices.now[i].split('#')[0].rstrip('_') for i in sorted(slices.private))} summed within steps"
    if slices.outer:
        text += f"; for each value of {', '.join(slices.outer)}"
    return text


def _latent_sizes(entry: BlockPlan) -> list[tuple[str, int]]:
    block = entry.block
    if block.axis is not None:
        states = block.axis.states
        return [(f"{states[0]}…{states[-1]} (T={len(states)}) K", block.latents[0].cardinality)]
    slices = block.slices
    if slices is not None:
        chained = [
            (f"{_stack_name(f)} (T={len(f)}) K", block.latent(f[0]).cardinality) for f in slices.families.values()
        ]
        return [*chained, *((z, block.latent(z).cardinality) for z in slices.outer)]
    return [(z.name, z.cardinality) for z in block.latents]


def _stack_name(members: Sequence[str]) -> str:
    return members[0] if len(members) < 2 else f"{members[0]}…{members[-1]}"


def _names(names: Sequence[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _shape(plan: Plan, name: str) -> str:
    shape = tuple(plan.program.parameters[name].init.shape)
    return f"[{'×'.join(map(str, shape))}]" if shape else ""


def _si(value: float) -> str:
    if value <= 0:
        return "0 "
    step = min(int(math.log10(value) // 3), 5)
    return f"{value / 1000**step:.3g} {['', 'k', 'M', 'G', 'T', 'P'][step]}"
