"""Building what a config of others describes in bounded memory and time: before anything large is made, it is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from mnist_exp.config.job import plain_message
from mnist_exp.errors import UserError

PARTS = 40_000  # layers and weights of a network; a WideSmallResNet of 1,000 blocks a stage has 36,000
_ROOM = 64 << 20  # bytes, for what is made beside the weights
_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace, torch.eye)  # fmt: skip


_COPIERS = (torch.Tensor.clone, torch.clone, torch.empty_like, torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like)  # fmt: skip


class TooLarge(UserError):
    """What a config describes is larger than it may be."""


class _Counted(TorchFunctionMode):
    """Before a tensor is made, whatever device it is to lie on, it is asked how large it would be."""

    def __init__(self, most: int, copied: Callable[[], None]):
        super().__init__()
        self.left = self.most = most
        self.copied = copied

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _MAKERS:
            asked = {key: value for key, value in kwargs.items() if key != "generator"}
            self.left -= function(*args, **asked | {"device": "meta"}).nbytes
        elif function in _COPIERS:
            self.left -= args[0].nbytes
            self.copied()
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
        stack.enter_context(_Counted(most, counted))
        yield


@contextlib.contextmanager
def as_large_as(held: int, weights: Path, origin: Path) -> Iterator[None]:
    """Let a network be built inside that ``origin`` describes, and whose ``weights``, a file, have ``held`` bytes.

    Raises UserError naming ``origin`` for whatever goes wrong: it may be anybody's.
    """
    try:
        with bounded(2 * held + _ROOM):  # what is made only to be filled, too
            yield
    except TooLarge as error:
        raise UserError(f"{origin} says a network of {error}; {weights}, its weights, has {held:,}") from error
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else plain_message(error)
        raise UserError(f"{origin}: {reason[:1000]}") from error
