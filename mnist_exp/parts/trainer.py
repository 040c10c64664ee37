"""Where and how a run is computed: device, precision, threads."""

from __future__ import annotations

import contextlib
import ctypes
import math
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from mnist_exp.checked import Count, checked
from mnist_exp.errors import WrongValue, require
from mnist_exp.parts.interfaces import RateSchedule

Threads = Annotated[int, Field(ge=1, le=1024)]  # far beyond that OpenMP ends the process, without a word
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@checked
class Trainer:
    """The device that trains, and how.

    ``device``: auto (a GPU if there is one), cpu, cuda, cuda:N or mps. ``precision``: auto is bf16 or fp16 on GPUs
    and bf16 on CPUs that have units for it (AVX512-BF16 or AMX), fp32 elsewhere. ``memory_format`` of weights and
    activations: auto is channels_last, which convolutions compute in, but on mps. ``compile``: torch.compile the model
    (auto: on a GPU, where the run is long enough to pay for it; on; off); see training.forward. ``threads`` of the CPU are
    set for this process: see ``threads_kept``.
    ``max_steps`` ends a run after that many steps. ``profile``: write a torch.profiler trace of the first 20 steps.
    Raises UserError for a device or precision that this machine does not have.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        memory_format: Literal["auto", "channels_last", "contiguous"] = "auto",
        compile: Literal["auto", "on", "off"] | bool = "auto",
        threads: Threads | None = None,
        max_steps: Count | None = None,
        profile: bool = False,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        usual = "contiguous" if self.device.type == "mps" else "channels_last"
        self.memory_format = usual if memory_format == "auto" else memory_format
        self.compile = compile if isinstance(compile, str) else "on" if compile else "off"  # older configs: a bool
        self.max_steps = max_steps
        self.profile = profile
        if self.device.type == "cpu":
            keep_freed_memory()

    @property
    def device_name(self) -> str:
        """The name of the GPU, or of the CPU with its number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        name = platform.processor() or platform.machine()
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name)
        return f"{name}, {torch.get_num_threads()} threads"

    def autocast(self) -> torch.autocast:
        """Return a fresh autocast context of the chosen precision (disabled in fp32)."""
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def place(self, model: nn.Module) -> nn.Module:
        """Return ``model`` on the device, its weights in the memory format, in which it then computes."""
        return model.to(self.device, memory_format=MEMORY_FORMATS[self.memory_format])  # type: ignore[call-overload]

    def epochs(self, schedule: RateSchedule, steps: int) -> int:
        """Return how many epochs of ``steps`` steps a run has, ``max_steps`` considered."""
        return schedule.total if self.max_steps is None else min(schedule.total, math.ceil(self.max_steps / steps))


def resolve_device(name: str) -> torch.device:
    """Return the torch device called ``name``. Raises WrongValue if this machine does not have it."""
    gpus = torch.cuda.device_count()
    there = ["cpu", *(f"cuda:{n}" for n in range(gpus))] + (["mps"] if torch.backends.mps.is_available() else [])
    if name == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    wanted = "cuda:0" if name == "cuda" else name
    require(wanted in there, "device", name, "auto or one of what this machine has: " + ", ".join(there))
    return torch.device(wanted)


def resolve_precision(name: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16 for the precision called ``name`` on ``device``. Raises WrongValue where it cannot work."""
    if name == "auto":
        if device.type == "cpu":
            units: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
            return "bf16" if units.get("avx512_bf16") or units.get("amx_bf16") else "fp32"
        if device.type != "cuda":
            return "fp32"
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise WrongValue("precision", name, "fp32 or bf16 on a CPU; fp16 trains on GPUs only")
    return name


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Give the process back the number of threads that it had before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks below 20 MB: on a CPU, asking for them anew each step costs page faults."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 20 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
