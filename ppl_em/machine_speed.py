"""How fast this machine runs each exact engine: measured once on small programs, kept in the user's cache."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.em.loop import Machine
from ppl_em.methods import EM
from ppl_em.plan.plan import Plan

#: E-steps that are timed; the median counts.
REPEATS = 5


@dataclass(frozen=True)
class Speed:
    """A straight line through two timings of an engine.

    Args:
        seconds: of an E-step that costs nothing: overhead.
        per_flop: seconds for each predicted operation.
    """

    seconds: float
    per_flop: float

    def predict(self, flops: float) -> float:
        """Seconds of an E-step."""
        return self.seconds + self.per_flop * flops


def median_seconds(run: Callable[[], Any]) -> float:
    """Median time of a call, after one that warms up."""
    run()
    found = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return sorted(found)[REPEATS // 2]


def e_step_of(plan: Plan, values: Mapping[str, Tensor]) -> Callable[[], Any]:
    """One E-step as a fit makes it, densities included."""
    machine = Machine(plan, EM(), torch.Generator().manual_seed(0))
    return lambda: machine.evaluate(dict(values))


def speeds() -> dict[str, Speed]:
    """Speed by engine's name, from the cache where this machine has been measured before."""
    path, key = _cache(), _key()
    known = _read(path)
    if key not in known:
        known[key] = {name: [s.seconds, s.per_flop] for name, s in _measure().items()}
        _write(path, known)
    return {name: Speed(*pair) for name, pair in known[key].items()}


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ppl_em" / "speed.json"


def _key() -> str:
    return f"{platform.node()} {platform.machine()} torch {torch.__version__} threads {torch.get_num_threads()}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, known: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(known, indent=1))
        part.replace(path)
    except OSError:
        return  # a machine without a cache is measured each time


def _measure() -> dict[str, Speed]:
    from ppl_em.fitting import explain

    found = {}
    for name, (model, small, large) in _PROGRAMS.items():
        plans = [explain(model, *arguments) for arguments in (small(), large())]
        flops = [sum(b.flops for b in p.blocks) for p in plans]
        values = [{n: q.init for n, q in p.program.parameters.items()} for p in plans]
        seconds = [median_seconds(e_step_of(p, v)) for p, v in zip(plans, values, strict=True)]
        slope = max(0.0, seconds[1] - seconds[0]) / (flops[1] - flops[0])
        found[name] = Speed(max(1e-6, seconds[0] - slope * flops[0]), slope)
    return found


def _mixture(x: Tensor) -> None:
    loc = pyro.param("loc", torch.linspace(-1.0, 1.0, 4))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(4) / 4))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def _chain(x: Tensor) -> None:
    loc = pyro.param("loc", torch.linspace(-1.0, 1.0, 6))
    rows = torch.ones(6, 6) / 6
    with pyro.plate("series", x.shape[1]):
        z: Any = 0
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])


def _tree(x: Tensor) -> None:
    loc = pyro.param("loc", torch.linspace(-1.0, 1.0, 5))
    rows = torch.ones(5, 5) / 5
    with pyro.plate("data", len(x)):
        root = pyro.sample("root", dist.Categorical(rows[0]))
        for i in range(3):
            leaf = pyro.sample(f"leaf{i}", dist.Categorical(rows[root]))
            pyro.sample(f"x{i}", dist.Normal(loc[leaf], 1.0), obs=x)


_PROGRAMS: dict[str, tuple[Callable[..., None], Callable[[], tuple[Tensor]], Callable[[], tuple[Tensor]]]] = {
    "mixture": (_mixture, lambda: (torch.zeros(100),), lambda: (torch.zeros(200_000),)),
    "chain": (_chain, lambda: (torch.zeros(20, 5),), lambda: (torch.zeros(20, 4_000),)),
    "elimination": (_tree, lambda: (torch.zeros(50),), lambda: (torch.zeros(40_000),)),
}
