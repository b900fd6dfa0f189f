"""A file that holds the best values so far of a long fit, and from which the same call goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppl_em.errors import FileError, message
from ppl_em.plan.plan import Plan

#: Seconds between two writes.
INTERVAL = 20.0
FORMAT = "ppl_em checkpoint 1"


@dataclass
class Checkpoint:
    """Where a fit keeps its best values.

    The file is written every ``INTERVAL`` seconds and at the end, atomically: it always holds one whole state. It belongs
    to one plan, known by its text: program, data shapes and settings. Another fit is refused, not overwritten.

    Args:
        path: the file (safetensors).
        values: constrained values that it held when it was opened, empty if there was none.
        digest: of the plan that these belong to.
    """

    path: Path
    values: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""
    _own: str = ""
    _best: float = -math.inf
    _pending: Any = None
    _written: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read a file, or get ready to write one.

        Args:
            path: the file; its directory must exist.

        Raises:
            FileError: there is no such directory, or the file is no checkpoint.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileError(message("the checkpoint's directory does not exist", value=path.parent, hint="creating it"))
        if not path.exists():
            return cls(path)
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise FileError(message("no readable checkpoint", value=path, why=str(error))) from error
        if about.get("format") != FORMAT:
            raise FileError(message("the file is no checkpoint", value=path, hint="another path"))
        return cls(path, values, about["digest"])

    def of(self, plan: Plan) -> None:
        """Bind the file to the plan of this fit.

        Raises:
            FileError: the file belongs to another program, other data or other settings.
        """
        self._own = hashlib.sha256(str(plan).encode()).hexdigest()
        if self.values and self.digest != self._own:
            why = "its plan is not that of this program on these data"
            raise FileError(
                message("the checkpoint belongs to another fit", value=self.path, why=why, hint="another path")
            )

    def see(self, values: Mapping[str, Tensor], objective: float) -> None:
        """Take note of a state; it is written if it is the best and the last write is long ago.

        Args:
            values: constrained values by name.
            objective: nats; the higher the better.
        """
        if not math.isfinite(objective) or objective < self._best:
            return
        self._best = objective
        self._pending = {n: v.detach().cpu().clone().contiguous() for n, v in values.items()}
        if time.monotonic() - self._written >= INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the best state that has not been written yet.

        Raises:
            FileError: the disk does not take it.
        """
        if not self._pending:
            return
        partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        about = {"format": FORMAT, "digest": self._own, "objective": json.dumps(self._best)}
        try:
            save_file(self._pending, str(partial), metadata=about)
            os.replace(partial, self.path)
        except OSError as error:
            raise FileError(message("cannot write the checkpoint", value=self.path, why=str(error))) from error
        finally:
            partial.unlink(missing_ok=True)
        self._pending, self._written = None, time.monotonic()
