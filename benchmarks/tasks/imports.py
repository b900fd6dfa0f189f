"""What importing `ppl_em` costs, beside ``import pyro``; each import in a fresh interpreter.

The package loads its parts when they are asked for, so that what counts is ``from ppl_em import fit``.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from benchmarks.task import Contender, Finish, Run, Target, Task


def runs(statement: str) -> Run:
    """Start interpreters that execute one statement."""

    def run(num_steps: int) -> Finish:
        for _ in range(num_steps):
            subprocess.run([sys.executable, "-c", statement], check=True)
        return lambda: 0.0

    return run


TASK = Task(
    what="import of the package in a fresh interpreter, its start included",
    contenders={
        "ppl_em": Contender(partial(runs, "from ppl_em import fit"), same_algorithm=False),
        "import ppl_em alone": Contender(partial(runs, "import ppl_em"), same_algorithm=False),
        "pyro": Contender(partial(runs, "import pyro"), same_algorithm=False),
    },
    num_steps=(0, 1),
    threads=(1,),
    target=Target("pyro", 1.3, start_steps=None),
)
