"""One competitor, in this process: train it, and print one line of JSON. ``bench_peers.py`` starts it.

    PYTHONPATH=scripts python -m peers.run NAME --data FOLDER [--seed 1] [--epochs N] [--images 4096]

The clock runs while it trains, from asking for an epoch's first batch to its last step; it stands still while the network
is built, the files are opened, and the test set is scored after each epoch.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from peers.competitors import MEAN, PEERS, STD, Peer, Training, digits


def train(peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    """Return the images a second, seconds and, after each epoch, the accuracy of ``peer``."""
    torch.manual_seed(options.seed)
    network = peer.network()
    training = peer.start(network, options.data, options.images)
    seconds, images, epochs = 0.0, 0, []
    for epoch in range(1, min(peer.epochs, options.epochs or peer.epochs) + 1):
        started = time.perf_counter()
        images += train_epoch(network, training, peer.precision)
        seconds += time.perf_counter() - started
        if not peer.limited:
            epochs.append({"epoch": epoch, "seconds": seconds, "test_acc": accuracy(network, options.data)})
    return {"precision": peer.precision, "images": images, "seconds": seconds, "epochs": epochs}


def train_epoch(network: nn.Module, training: Training, precision: str) -> int:
    """Train one epoch; return how many images it had."""
    count = 0
    network.train()
    for images, labels in training.batches():
        training.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        training.optimizer.step()
        training.after_step()
        count += len(labels)
    training.after_epoch()
    return count


@torch.inference_mode()
def accuracy(network: nn.Module, folder: Path) -> float:
    """Return the accuracy on the test set, in percent."""
    network.eval()
    test = digits(folder, False)
    hits = 0
    for images, labels in zip(test.data.split(1000), test.targets.split(1000), strict=True):
        logits = network(images.unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD))
        hits += int((logits.argmax(1) == labels).sum())
    return 100 * hits / len(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*PEERS, "keras"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="at most; default: as many as it ships with")
    parser.add_argument("--images", type=int, default=4096)
    options = parser.parse_args()
    if options.name == "keras":
        from peers import convnet

        print(
            json.dumps(convnet.train(options.data, options.seed, min(convnet.EPOCHS, options.epochs or convnet.EPOCHS)))
        )
    else:
        print(json.dumps(train(PEERS[options.name], options)))


if __name__ == "__main__":
    main()
