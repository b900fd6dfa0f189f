"""Results on disk: JSON and safetensors, written atomically, never pickled."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppl_em.errors import FileError, message
from ppl_em.plan.saved import SavedPlan
from ppl_em.saved_arguments import pack, unpack
from ppl_em.status import Status

if TYPE_CHECKING:
    from ppl_em.result import FitResult

FORMAT = 1
JSON, TENSORS = "result.json", "tensors.safetensors"
GROUPS = ("params", "point_estimates", "guide_params")


def save(result: FitResult, path: Path, *, data: bool = False) -> Path:
    """Write a result to a directory.

    Args:
        result: the result.
        path: the directory, made if need be; files of these names are replaced atomically.
        data: also keep the model's arguments.

    Raises:
        FileError: the directory cannot be written, or an argument cannot be stored.
    """
    tensors: dict[str, Tensor] = {}
    for group in GROUPS:
        for name, value in getattr(result, group).items():
            tensors[f"{group}/{name}"] = value.detach().cpu().clone().contiguous()
    tensors["history"] = result.history.clone()
    header = _header(result)
    _add_guide(result, header, tensors)
    if data and result._source is not None:
        header["args"] = [pack(v, f"args/{i}", tensors) for i, v in enumerate(result._source.args)]
        header["kwargs"] = {k: pack(v, f"kwargs/{k}", tensors) for k, v in result._source.kwargs.items()}
    header["pair"] = secrets.token_hex(8)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path) as staging:
            save_file(tensors, str(Path(staging) / TENSORS), metadata={"pair": header["pair"]})
            Path(staging, JSON).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
            for name in (TENSORS, JSON):
                os.replace(Path(staging) / name, path / name)
    except OSError as error:
        raise FileError(message("cannot write the result", value=path, why=str(error))) from error
    return path


def _add_guide(result: FitResult, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put what an approximate posterior is rebuilt from into header and tensors."""
    from ppl_em.svi.result import ApproximateResult
    from ppl_em.svi.saved_guide import describe, tracing_to_json

    if not isinstance(result, ApproximateResult):
        return
    saved = result._saved if result._run is None else describe(result._run)
    if saved is None:
        return
    names = list(saved.tensors)
    for name in names:
        tensors[f"guide/{name}"] = saved.tensors[name].detach().cpu().clone().contiguous()
    header["guide"] = {"content": dict(saved.content), "tensors": names, "tracing": tracing_to_json(result._tracing)}
    header["trained"] = {
        "held_out": list(result.held_out),
        "num_values": result.num_values,
        "num_trained": result.num_trained,
    }


def _approximate(header: Mapping[str, Any], tensors: Mapping[str, Tensor], guide: Any) -> dict[str, Any]:
    """The members of an approximate result that only it has."""
    from ppl_em.svi.saved_guide import SavedGuide, tracing_from_json

    if "guide" not in header:
        return {}
    kept = header["guide"]
    saved = SavedGuide(kept["content"], {n: tensors[f"guide/{n}"] for n in kept["tensors"]}, guide)
    trained = header["trained"]
    return {
        "_saved": saved,
        "_tracing": tracing_from_json(kept["tracing"]),
        "held_out": tuple(trained["held_out"]),
        "num_values": trained["num_values"],
        "num_trained": trained["num_trained"],
    }


def _header(result: FitResult) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "objective": result.objective,
        "objective_name": result.objective_name,
        "log_likelihood": result.log_likelihood,
        "exact": result.exact,
        "status": result.status.name,
        "detail": result.detail,
        "num_steps": result.num_steps,
        "seed": result.seed,
        "num_parameters": result.num_parameters,
        "num_observations": result.num_observations,
        "parted": result._parted,
        "restarts": [[r.kind, r.objective, r.status.name, r.num_steps, r.screened] for r in result.restarts],
        "plan_text": str(result.plan),
        "plan": result.plan.to_dict(),
        "coords": {k: [str(v) for v in vs] for k, vs in result._coords.items()},
        "columns": result._columns,
        "names": {group: list(getattr(result, group)) for group in GROUPS},
        "settings": {k: v for k, v in result._settings.items() if _plain(v)},
    }


def _plain(value: Any) -> bool:
    """Whether JSON gives a value back as it was."""
    return value is None or isinstance(value, (bool, int, float, str))


def load(path: str | Path, model: Any, guide: Any = None) -> FitResult:
    """Read a result written by :meth:`FitResult.save`.

    Args:
        path: the directory.
        model: the program that was fitted (programs are not stored).
        guide: the user's guide, if one was used, or the module given as ``SVI(encoder=…)``; its weights are replaced by
            the fitted ones. An automatic guide is rebuilt.

    Returns:
        A result that answers queries on data that are given, without retraining.

    Raises:
        FileError: nothing readable is there.
    """
    from ppl_em.result import Restart
    from ppl_em.svi.result import ApproximateResult
    from ppl_em.trace.tracing import Source

    header, tensors = _read(Path(path))
    groups = {g: {n: tensors[f"{g}/{n}"] for n in names} for g, names in header["names"].items()}
    restarts = tuple(Restart(k, o, Status[s], n, c) for k, o, s, n, c in header["restarts"])
    source, parted = None, bool(header.get("parted", False))
    if "args" in header:
        args = tuple(unpack(v, tensors) for v in header["args"])
        source = Source(model, args, {k: unpack(v, tensors) for k, v in header["kwargs"].items()}, header["seed"])
    _restore_module(model, groups["params"])
    kind = _kind(header)
    return kind(
        **(_approximate(header, tensors, guide) if kind is ApproximateResult else {}),
        params=groups["params"],
        point_estimates=groups["point_estimates"],
        guide_params=groups["guide_params"],
        objective=header["objective"],
        objective_name=header["objective_name"],
        log_likelihood=header["log_likelihood"],
        exact=header["exact"],
        plan=SavedPlan(header["plan_text"], header["plan"]),
        history=tensors["history"],
        status=Status[header["status"]],
        num_steps=header["num_steps"],
        seed=header["seed"],
        restarts=restarts,
        num_parameters=header["num_parameters"],
        num_observations=header["num_observations"],
        detail=header["detail"],
        _source=source,
        _coords=header["coords"],
        _columns=header["columns"],
        _model=model,
        _settings=header["settings"],
        _parted=parted,
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a saved result.

    Raises:
        FileError: nothing readable is there.
    """
    try:
        header = json.loads((path / JSON).read_text(encoding="utf-8"))
        with safe_open(str(path / TENSORS), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            pair = (file.metadata() or {}).get("pair")
    except (OSError, ValueError, SafetensorError) as error:
        raise FileError(
            message("no readable result", value=path, why=str(error), hint="the directory given to save()")
        ) from error
    if header.get("format") != FORMAT:
        raise FileError(
            message(
                "the result has another format",
                value=header.get("format"),
                why=f"this version reads {FORMAT}",
            )
        )
    if pair != header["pair"]:
        why = "a write was interrupted, or files were exchanged"
        raise FileError(message(f"{JSON} and {TENSORS} do not belong together", value=path, why=why))
    return header, tensors


def _kind(header: Mapping[str, Any]) -> type[FitResult]:
    """The class of a saved result."""
    from ppl_em.result import FitResult
    from ppl_em.svi.result import ApproximateResult
    from ppl_em.variational_em.plan import CONJUGATE_UPDATE
    from ppl_em.variational_em.result import VariationalResult

    if any(u["rule"] == CONJUGATE_UPDATE for u in header["plan"]["updates"]):
        return VariationalResult
    return ApproximateResult if header["objective_name"] == "elbo" else FitResult


def _restore_module(model: Any, params: Mapping[str, Tensor]) -> None:
    """Give a module its fitted weights back, where its own names are known."""
    if not isinstance(model, torch.nn.Module):
        return
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in params.items():
            target = own.get(name.replace("$$$", "."))
            if target is not None and target.shape == value.shape:
                target.copy_(value)
