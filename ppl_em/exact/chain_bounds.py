"""Whether the scaled recursions can be trusted where some transitions are impossible or very rare.

A state may then fall behind the others until its message is too small to be represented, and yet win in the
end. So the forward recursion runs a second time with every message kept from falling below a floor: what it
computes bounds the truth from above, as the first, which only loses, bounds it from below. Where both agree,
nothing that matters was lost; where they do not, log space must decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.exact.chain_recursions import Recursions

_FLOOR = 1e-250
# Messages that fall faster than this in one step could leave the range between two floors.
_STEEPEST = 1e-40
_AGREE = 1e-11


def trusted(run: Recursions, start: Tensor | None) -> Tensor:
    """Which chains `Recursions.forward` got right.

    Args:
        run: After `Recursions.forward`.
        start: The messages that it started from.

    Returns:
        ``(G, N)`` bool.
    """
    layout = run.chains.layout
    finite = run.chains.log_scale.isfinite()
    if run.chains.sure:
        return finite
    upper, log_ratio = _upper_bound(run, start)
    # At a block's end the next block starts from the lower bound, or from the floor: the upper must not be
    # above.
    slack = upper.log_().add_(log_ratio.unsqueeze(-2)) - (run.last_alpha.clamp(min=_FLOOR)).log_()
    slack[layout.block(-1)] = 0.0
    steepest = torch.stack([norm for norm in run.norms if norm is not None]).amin(0)
    right = (log_ratio <= _AGREE) & (slack <= _AGREE).all(-2) & (steepest >= _STEEPEST)
    right = right.unsqueeze(0) if run.single else right
    return finite & (layout.per_chain((~right).double()) == 0.0)


def _upper_bound(run: Recursions, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward recursion above a floor.

    Returns:
        The last message of each block, scaled to sum to one before it was kept above the floor, and the log
        of what was divided out above what `Recursions.forward` divided out, ``(*G, N)``.
    """
    layout = run.chains.layout
    message, after = torch.empty_like(run.last_alpha), torch.empty_like(run.last_alpha)
    log_ratio = torch.zeros_like(message[..., 0, :])
    if start is not None:
        torch.clamp(start, min=_FLOOR, out=message)
    for t, obs in enumerate(run.obs):
        if t == 0 and start is None:
            after.copy_(obs)
        else:
            run.predict(t, message, after)
            after.mul_(obs)
        norm = after.sum(-2)
        after.div_(norm.unsqueeze(-2)).clamp_(min=_FLOOR)
        lower = run.norms[t]
        assert lower is not None
        norm.div_(lower).log_()
        if t > layout.tail:
            norm[layout.block(-1)] = 0.0
        log_ratio.add_(norm)
        message, after = after, message
    return message, log_ratio
