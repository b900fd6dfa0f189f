"""``print(explain(...))`` for every program in `models` with the data that it comes with."""

from __future__ import annotations

import importlib
import pkgutil
from functools import partial

import models
from benchmarks.task import Contender, Finish, Run, Task


def plans(name: str) -> Run:
    """The plan of one program, printed."""
    import ppl_em

    program = importlib.import_module(f"models.{name}")
    loaded = program.load()
    args = loaded if isinstance(loaded, tuple) else (loaded,)

    def run(num_steps: int) -> Finish:
        for _ in range(num_steps):
            assert str(ppl_em.explain(program.model, *args))
        return lambda: 0.0

    return run


TASK = Task(
    what="the plan of each program of the zoo",
    contenders={
        module.name: Contender(partial(plans, module.name), same_algorithm=False)
        for module in pkgutil.iter_modules(models.__path__)
    },
    num_steps=(1, 3),
    max_repeats=2,
    threads=(1,),
    limit_seconds=1.0,
)
