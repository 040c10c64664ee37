"""Building what a config of others describes in bounded memory and time: before anything large is made, it is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from mnist_exp.errors import UserError

PARTS = 40_000  # layers and weights of a network; a WideSmallResNet of 1,000 blocks a stage has 36,000
_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace, torch.eye)  # fmt: skip


class TooLarge(UserError):
    """What a config describes is larger than it may be."""


class _Counted(TorchFunctionMode):
    """Before a tensor is made, whatever device it is to lie on, it is asked how large it would be."""

    def __init__(self, most: int):
        super().__init__()
        self.left = self.most = most

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _MAKERS:
            asked = {key: value for key, value in kwargs.items() if key != "generator"}
            self.left -= function(*args, **asked | {"device": "meta"}).nbytes
            if self.left < 0:
                raise TooLarge(f"more than {self.most:,} bytes")
        return function(*args, **kwargs)


@contextlib.contextmanager
def bounded(most: int) -> Iterator[None]:
    """Raise TooLarge as soon as what is built inside has more than ``most`` bytes of tensors, or PARTS parts."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > PARTS:
            raise TooLarge(f"more than {PARTS:,} layers and weights")

    with contextlib.ExitStack() as stack:
        for register in (register_module_module_registration_hook, register_module_parameter_registration_hook):
            stack.callback(register(counted).remove)
        stack.enter_context(_Counted(most))
        yield
