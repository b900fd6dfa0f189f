"""Everything that a report shows, gathered once: tables, texts and figures read the same values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ppl_em.diagnostics.check import COLOURS, SIGNS, Diagnosis
from ppl_em.errors import PplEmError
from ppl_em.plan.plan import Plan
from ppl_em.plan.structured import elements
from ppl_em.report.environment import environment
from ppl_em.report.figures import Figure, figures
from ppl_em.summary import LARGE, summary

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Rows of a table in the page; all of them are in the JSON.
MOST_ROWS = 60
#: Hidden structures that are looked at one by one.
MOST_STRUCTURES = 100


@dataclass(frozen=True)
class Content:
    """Values and pictures of a report.

    Args:
        values: plain values by section, as they go into the JSON.
        figures: pictures by section.
        sections: (anchor, title) in order.
    """

    values: dict[str, Any]
    figures: dict[str, list[Figure]]
    sections: tuple[tuple[str, str], ...]


def collect(result: FitResult, checks: Sequence[Callable[[Any], Any]] | None, title: str) -> Content:
    """Gather a report's content.

    Args:
        result: a fit.
        checks: as for :meth:`FitResult.diagnose`.
        title: of the page.
    """
    diagnosis = result.diagnose(checks)
    live = isinstance(result.plan, Plan)
    name = _name(result._model)
    values: dict[str, Any] = {
        "title": title or f"Fit of {name}",
        "verdict": _verdict(diagnosis),
        "fit": _fit(result),
        "plan": str(result.plan),
        "data": _table(lambda: _data(result)) if live else [],
        "parameters": _parameters(result),
        "predictive": _table(lambda: result.predictive_check.table().to_dict("records")),
        "loo": _loo(result),
        "latents": _latents(result) if live else [],
        "structures": _table(lambda: _structures(result)) if live else [],
        "restarts": _restarts(result),
        "calibration": _table(lambda: _calibration(result)),
        "environment": environment(result),
        "limit": MOST_ROWS,
    }
    pictures = figures(result) if live else {}
    return Content(values, pictures, _sections(values, pictures))


def _name(model: Any) -> str:
    """What a program is called; the file that it stands in where its own name says nothing."""
    name = getattr(model, "__name__", type(model).__name__)
    module = (getattr(model, "__module__", "") or "").rpartition(".")[2]
    return module if name == "model" and module not in ("", "__main__") else name


def _sections(values: dict[str, Any], pictures: dict[str, list[Figure]]) -> tuple[tuple[str, str], ...]:
    every = (
        ("verdict", "Verdict"),
        ("plan", "Plan"),
        ("data", "Data"),
        ("parameters", "Parameters"),
        ("predictive", "Predictive checks"),
        ("loo", "Held-out data" if "bits" in values["loo"] else "Leave-one-out"),
        ("latents", "Latents"),
        ("convergence", "Convergence"),
        ("calibration", "Calibration"),
        ("environment", "Environment"),
    )
    shown = {"convergence", *(["latents"] if values.get("structures") else [])}
    return tuple((a, t) for a, t in every if values.get(a) or pictures.get(a) or a in shown)


def _verdict(diagnosis: Diagnosis) -> dict[str, Any]:
    word = {"pass": "can be trusted", "fail": "do not trust", "not run": "not fully checked"}
    found = diagnosis.to_dict()
    found["sign"], found["colour"] = SIGNS[diagnosis.outcome], COLOURS[diagnosis.outcome]
    subjects = {c.about for c in diagnosis.failures}
    found["word"] = word[diagnosis.outcome.value]
    if subjects and "fit" not in subjects:
        found["word"] = "with care"
    for check, entry in zip(diagnosis.checks, found["checks"], strict=True):
        entry["sign"], entry["colour"] = SIGNS[check.outcome], COLOURS[check.outcome]
    return found


def _intervals(result: FitResult) -> str:
    """What kind of intervals the parameters have, and where they come from."""
    if result.objective_name == "elbo" and not hasattr(result, "query"):
        return "credible intervals of the factors"
    kind = "credible where a prior is given, else confidence" if result.point_estimates else "confidence"
    return f"{kind} intervals from the observed information"


def _fit(result: FitResult) -> dict[str, Any]:
    return {
        "objective_name": result.objective_name.replace("_", "-"),
        "objective": result.objective,
        "log_likelihood": result.log_likelihood,
        "log_prior": result.log_prior if result.log_likelihood is not None else None,
        "exact": result.exact,
        "status": str(result.status),
        "detail": result.detail,
        "num_steps": result.num_steps,
        "num_parameters": result.num_parameters,
        "num_observations": result.num_observations,
        "aic": result.aic if result.log_likelihood is not None else None,
        "bic": result.bic if result.log_likelihood is not None else None,
        "intervals": _intervals(result),
    }


def _data(result: FitResult) -> list[dict[str, Any]]:
    program = result.plan.program
    rows: dict[str, dict[str, Any]] = {}
    for check in result.predictive_check.sites:
        for i, column in enumerate(check.columns):
            values, _ = check.column(i)
            label = " ".join(filter(None, (check.name, column)))
            rows[label] = {
                "site": label,
                "count": len(values),
                "kind": "whole numbers" if check.discrete else "real",
                "smallest": float(values.min()),
                "mean": float(values.mean()),
                "standard deviation": float(values.std()) if len(values) > 1 else None,
                "largest": float(values.max()),
            }
    plates = {p.name: p.size for p in program.plates.values()}
    return [{**row, "plates": ", ".join(f"{n}={s}" for n, s in plates.items())} for row in rows.values()]


def _parameters(result: FitResult) -> list[dict[str, Any]]:
    table = summary(result)
    rows = [{"parameter": str(label), **row} for label, row in zip(table.index, table.to_dict("records"), strict=True)]
    return rows if len(rows) <= 5 * LARGE else rows[: 5 * LARGE]


def _loo(result: FitResult) -> dict[str, Any]:
    if result.log_likelihood is None:
        held = list(getattr(result, "held_out", ()))
        return {
            "held_out": max(held) if held else None,
            "held_out_bits": getattr(result, "held_out_bits_per_value", None),
            "bits": getattr(result, "bits_per_value", None),
        }
    try:
        found = result.loo
    except PplEmError as error:
        return {"absent": " ".join(str(error).split())}
    worst = sorted(enumerate(found.pareto_k.reshape(-1).tolist()), key=lambda item: -item[1])[:5]
    return {
        "elpd": found.elpd,
        "se": found.se,
        "p": found.p,
        "largest_k": [{"datum": i, "k": k, "elpd": float(found.elpd_i.reshape(-1)[i])} for i, k in worst],
    }


def _latents(result: FitResult) -> list[dict[str, Any]]:
    if result.log_likelihood is None:
        return _table(lambda: _codes(result))
    posterior = result.posterior()
    rows = []
    for entry in result.plan.blocks:
        axis = entry.block.axis
        for latent in entry.block.latents if axis is None else entry.block.latents[:1]:
            probs = posterior.probabilities(latent.name) if axis is None else posterior.path(latent.name).probs
            flat = probs.reshape(-1, probs.shape[-1])
            label = latent.name if axis is None else f"{axis.states[0]} … {axis.states[-1]}"
            shares = ", ".join(f"{100 * s:.3g} %" for s in flat.mean(0).tolist()[:12]) + (
                " …" if flat.shape[1] > 12 else ""
            )
            certainty = f"{100 * float(flat.amax(-1).mean()):.3g} %"
            row = {"latent": label, "engine": entry.engine.name, "elements": len(flat)}
            rows.append({**row, "share of each value": shares, "mean certainty": certainty})
            if len(rows) >= MOST_ROWS:
                return rows
    return rows


def _structures(result: FitResult) -> list[dict[str, Any]]:
    """Hidden structures inside observed sites: how sure their posteriors are."""
    rows = []
    for entry in result.plan.structured:
        posterior = result.posterior().structure(entry.name, first=MOST_STRUCTURES)
        best, log_z = posterior.mode(), posterior.log_z.double()
        best = torch.tensor([t.log_prob for t in best]) if isinstance(best, list) else best.log_prob
        certainty = (best.double().reshape(log_z.shape) - log_z).exp()
        row = {
            "site": entry.name,
            "structure of": entry.family,
            "elements": elements(entry),
            "looked at": log_z.numel(),
        }
        row |= {"mean entropy, nats": float(posterior.entropy().double().mean())}
        rows.append({**row, "mean probability of the best": float(certainty.mean())})
    return rows


def _codes(result: FitResult) -> list[dict[str, Any]]:
    """Latents that are drawn from an approximate posterior."""
    plan, drawn = result._plan_for(()), result.particles
    return [
        {
            "latent": name,
            "engine": plan.approximated.get(name, ""),
            "elements": len(drawn.means[name]),
            "nats per datum": float(carried.sum()),
            "dimensions used": len(carried) - sum(n.split("[")[0] == name for n in drawn.unused()),
            "dimensions": len(carried),
        }
        for name, carried in drawn.divergences.items()
    ]


def _restarts(result: FitResult) -> list[dict[str, Any]]:
    return [
        {
            "start": i + 1,
            "kind": r.kind,
            "objective": r.objective,
            "steps": r.num_steps,
            "status": "dropped early" if r.screened else r.status.name.lower().replace("_", " "),
        }
        for i, r in enumerate(result.restarts)
    ]


def _calibration(result: FitResult) -> list[dict[str, Any]]:
    if result.log_likelihood is None:
        ranks = result.calibration
        return [{"column": n, "distance": ranks.distance(n), "band": ranks.band} for n in ranks.values]
    return [{"column": n, "distance": p.distance, "band": p.band} for n, p in result.loo_pit.items()]


def _table(make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a table; none where this fit does not have it (the checks say why)."""
    try:
        return make()
    except PplEmError:
        return []
