"""What it takes to make the same fit again: versions, seeds, fingerprints of data and estimates, thresholds."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.diagnostics import bootstrap, checks
from ppl_em.diagnostics.psis import threshold

if TYPE_CHECKING:
    from ppl_em.result import FitResult

PACKAGES = ("ppl-em", "torch", "pyro-ppl", "numpy", "arviz", "xarray", "matplotlib")


def environment(result: FitResult) -> dict[str, Any]:
    """Versions, machine, seed, fingerprints and thresholds, as plain values."""
    values = result._values
    arguments = () if result._source is None else (*result._source.args, *result._source.kwargs.values())
    data = [a for a in arguments if isinstance(a, Tensor)]
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}",
        "device": ", ".join(sorted({str(v.device) for v in values.values()})) or "cpu",
        "dtype": ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in values.values()})),
        "threads": torch.get_num_threads(),
        "seed": result.seed,
        "data_sha256": fingerprint(data) if data else None,
        "estimates_sha256": fingerprint(values[n] for n in sorted(values)),
        "thresholds": {
            "nats left to gain": checks.REMAINING,
            "nats between equal optima": checks.SAME_HEIGHT,
            "standard errors between equal optima": checks.SAME_POINT,
            "expected data of an empty state": checks.EMPTY,
            "k-hat of 1000 draws": round(threshold(1000), 3),
            "share of refits with ambiguous labels": bootstrap.MOST_AMBIGUOUS,
        },
    }


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
