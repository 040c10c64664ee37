"""The peers that are written in torch: a network, and how its batches, optimizer and schedule are.

Written from descriptions, and each somewhat faster than what it stands for: the loop is bare, without frameworks,
metrics or printing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnist_exp.parts.models import WideSmallResNet
from mnist_exp.vision import import_torchvision

MEAN, STD = 0.1307, 0.3081
WORKERS = 4  # of the original's loader
Batches = Iterable[tuple[Tensor, Tensor]]


class Training(NamedTuple):
    """What trains: the batches of an epoch, the optimizer, and what is done after each step and each epoch."""

    batches: Callable[[], Batches]
    optimizer: torch.optim.Optimizer
    after_step: Callable[[], object] = lambda: None
    after_epoch: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Peer:
    """A competitor: its network, and ``start(network, folder of data, images)``.

    ``epochs`` are as many as it ships with. ``limited``: it takes hours, so one epoch of so many images is trained, and
    nothing scored.
    """

    network: Callable[[], nn.Module]
    start: Callable[[nn.Module, Path, int], Training]
    epochs: int = 1
    limited: bool = False
    precision: str = "fp32"


def digits(folder: Path, train: bool, *transforms: Any) -> Any:
    """Return torchvision's MNIST below ``folder``, each picture as a PIL image that goes through ``transforms``."""
    vision = import_torchvision("torchvision.transforms")
    return import_torchvision("torchvision.datasets").MNIST(str(folder), train, vision.Compose(transforms))


def _tensor_and_norm() -> tuple[Any, Any]:
    vision = import_torchvision("torchvision.transforms")
    return vision.ToTensor(), vision.Normalize((MEAN,), (STD,))


def example_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )


def example(network: nn.Module, folder: Path, images: int) -> Training:
    """PyTorch's own example. On a CPU it loads in its own process and in the order of the file, as it ships."""
    loader = torch.utils.data.DataLoader(digits(folder, True, *_tensor_and_norm()), 64)
    optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)
    return Training(lambda: loader, optimizer, after_epoch=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7).step)


def dense_network() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in ((784, 128), (128, 256), (256, 64)):
        layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def dense(network: nn.Module, folder: Path, images: int) -> Training:
    """What templates for Hydra ship; shuffled, loaded in its own process, here on all 60,000."""
    loader = torch.utils.data.DataLoader(digits(folder, True, *_tensor_and_norm()), 64, shuffle=True)
    return Training(lambda: loader, torch.optim.Adam(network.parameters(), lr=1e-3))


def one_epoch_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def one_epoch(network: nn.Module, folder: Path, images: int) -> Training:
    """99 % in one epoch: the whole data one tensor, in the order of the file, one cycle of Adam up to 0.01."""
    data = digits(folder, True)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        whole = data.data.unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD)
        yield from zip(whole.split(256), data.targets.split(256), strict=True)

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, betas=(0.7, 0.9))
    steps = -(-len(data) // 256)
    # it would cycle the first of the betas as well
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, cycle_momentum=False)
    return Training(batches, optimizer, after_step=cycle.step)


def original_network() -> nn.Module:
    return WideSmallResNet(ghost_batch_size=None)


def original(network: nn.Module, folder: Path, images: int) -> Training:
    """The original's wide network as such scripts have it: PIL pictures, transformed one by one in four processes."""
    vision = import_torchvision("torchvision.transforms")
    transforms = [vision.RandomCrop(28, padding=4), vision.RandomRotation(8), *_tensor_and_norm()]
    data = digits(folder, True, *transforms, vision.RandomErasing(0.25))
    some = torch.utils.data.Subset(data, range(min(images, len(data))))
    loader = torch.utils.data.DataLoader(some, 256, shuffle=True, num_workers=WORKERS)
    return Training(lambda: loader, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9))


def keras_network() -> nn.Module:
    """The network of Keras' example in torch, which only counts its operations."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(1600, 10)),
    )


PEERS = {
    "example": Peer(example_network, example, epochs=14),
    "dense": Peer(dense_network, dense, epochs=10),
    "one_epoch": Peer(one_epoch_network, one_epoch),
    "original_fp32": Peer(original_network, original, limited=True),
    "original_bf16": Peer(original_network, original, limited=True, precision="bf16"),
}
NETWORKS = {name: peer.network for name, peer in PEERS.items()} | {"keras": keras_network}
