"""What this machine can do, and what a network asks of it: one line of JSON, from a process of its own.

PYTHONPATH=scripts python -m peers.rates matmul                     # operations a second of square matrix products
PYTHONPATH=scripts python -m peers.rates NAME ... [KEY=VALUE ...]   # operations an image, forward and backward
"""

import json
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mnist_exp import compose
from mnist_exp.config.build import build
from peers.competitors import NETWORKS
from peers.ours import OURS

SIDE, TIMES = 2048, 9


def matmul_rate(dtype: torch.dtype, side: int = SIDE) -> float:
    """Return the floating-point operations a second of products of two ``side`` x ``side`` matrices, the median."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds[1:])


def operations(network: nn.Module, batch: int = 4) -> float:
    """Return the floating-point operations an image of one training step: convolutions and matrix products."""
    images, labels = torch.randn(batch, 1, 28, 28), torch.zeros(batch, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(images), labels).backward()
    return counter.get_total_flops() / batch


def network_of(name: str, overrides: list[str]) -> nn.Module:
    network = NETWORKS[name]() if name in NETWORKS else build(compose(*OURS[name].overrides, *overrides), "model")
    assert isinstance(network, nn.Module)
    return network


def main() -> None:
    if sys.argv[1:] == ["matmul"]:
        rates = {"fp32": matmul_rate(torch.float32), "bf16": matmul_rate(torch.bfloat16)}
        print(json.dumps(rates | {"threads": torch.get_num_threads()}))
    else:
        overrides = [word for word in sys.argv[1:] if "=" in word]
        print(json.dumps({x: operations(network_of(x, overrides)) for x in sys.argv[1:] if x not in overrides}))


if __name__ == "__main__":
    main()
