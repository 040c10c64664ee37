"""Lookahead around any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from mnist_exp.checked import Count, check_arguments, checked


@checked
class Lookahead(Optimizer):
    """Every ``k`` steps of the base optimizer, move slow weights by ``alpha`` towards the fast and start over there.

    ``base`` builds the inner optimizer from (params, **options), e.g. a partial of torch.optim.SGD; its options are
    given here. Parameter groups are the base's own, so learning rates set on this object, GradScaler and schedulers
    work as on any optimizer; a step that GradScaler skips does not count.

    Source: Zhang, Lucas, Hinton, Ba, "Lookahead Optimizer" (2019), https://arxiv.org/abs/1907.08610.
    """

    def __init__(
        self,
        params: Any,
        base: Callable[..., Optimizer],
        k: Count = 5,
        alpha: Annotated[float, Field(gt=0, le=1)] = 0.25,
        **options: Any,
    ):
        check_arguments(getattr(base, "func", base), options)
        self.base = base(params, **options)
        self.k = k
        self.alpha = alpha
        self.counter: int | Tensor = 0  # steps since the last synchronisation
        self.slow: list[Tensor] | None = None
        super().__init__(self.base.param_groups, self.base.defaults)
        self._share()

    def _share(self) -> None:
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    def _fast(self) -> list[Tensor]:
        return [p for group in self.base.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the base optimizer, and every k-th time the slow step; return the closure's loss."""
        fast = self._fast()
        if self.slow is None:  # as late as this, so that weights loaded after construction count
            self.slow = [p.clone() for p in fast]
        if getattr(self, "found_inf", None) is not None:
            return self._scaled_step(fast, self.slow)
        loss = self.base.step(closure)
        self.counter += 1
        if self.counter == self.k:
            self.counter = 0
            torch._foreach_lerp_(self.slow, fast, self.alpha)
            torch._foreach_copy_(fast, self.slow)
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves scaling and skipping to ``step``: as it does to fused optimizers, never waiting."""
        return getattr(self.base, "_step_supports_amp_scaling", False)

    def _scaled_step(self, fast: list[Tensor], slow: list[Tensor]) -> None:
        """Take a step that ``found_inf``, set by GradScaler, may forbid: only the device knows whether it was taken."""
        skipped: Tensor = self.found_inf  # type: ignore[attr-defined]
        self.base.grad_scale, self.base.found_inf = self.grad_scale, skipped  # type: ignore[attr-defined]
        try:
            self.base.step()
        finally:
            del self.base.grad_scale, self.base.found_inf  # type: ignore[attr-defined]
        counter = self.counter + (skipped == 0).int()
        due = (counter == self.k).int()
        self.counter = counter * (1 - due)
        for before, now in zip(slow, fast, strict=True):
            before.lerp_(now, (due * self.alpha).to(now.dtype))
            now.lerp_(before, due.to(now.dtype))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its slow weights start where it is now."""
        if any(param_group is group for group in self.base.param_groups):
            super().add_param_group(param_group)  # the base's own groups, named again by Optimizer.__init__
            return
        self.base.add_param_group(param_group)
        if self.slow is not None:
            self.slow += [p.detach().clone() for p in self.base.param_groups[-1]["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, the slow weights (None before the first step) and the counter."""
        return {"base": self.base.state_dict(), "slow": self.slow, "counter": int(self.counter)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict["base"])
        slow = state_dict["slow"]
        if slow is not None:
            slow = [s.to(p, copy=True) for s, p in zip(slow, self._fast(), strict=True)]
        self.slow = slow
        self.counter = int(state_dict["counter"]) % self.k  # of another k: the next k steps have a synchronisation
        self._share()
