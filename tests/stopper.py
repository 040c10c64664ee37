"""Parts of a user's own, for runs that are to end at a certain point, and for looking on."""

import os
import signal
from typing import ClassVar

import torch
from torch import nn

from mnist_exp.parts.evaluate import PLAIN, Evaluator
from mnist_exp.parts.models import SmallCNN


class Logger:
    """End the process's run when epoch $STOP_IN_EPOCH has been logged; 0: before the first."""

    def start(self, folder, parameters):
        self.log({}, 0)

    def log(self, metrics, epoch=None):
        if str(epoch) == os.environ.get("STOP_IN_EPOCH"):
            raise SystemExit(9)

    def finish(self, status):
        pass


class Net(SmallCNN):
    """Ctrl-C in training step $INTERRUPT_IN_STEP of this network."""

    steps = 0

    def forward(self, x):
        if self.training:
            self.steps += 1
            if str(self.steps) == os.environ.get("INTERRUPT_IN_STEP"):
                signal.raise_signal(signal.SIGINT)
        return super().forward(x)


class Spy(Evaluator):
    """Remember what is scored: (images, shifts)."""

    scored: ClassVar[list] = []

    def probabilities(self, model, split, autocast, shifts=PLAIN):
        self.scored.append((len(split), tuple(shifts)))
        return super().probabilities(model, split, autocast, shifts)


class Ender(Evaluator):
    """End the process when it is to score the test set for the $STOP_IN_TEST-th time; of 1,000 images."""

    scored: ClassVar[int] = 0

    def probabilities(self, model, split, autocast, shifts=PLAIN):
        Ender.scored += len(split) == 1000
        if str(Ender.scored) == os.environ.get("STOP_IN_TEST"):
            raise SystemExit(9)
        return super().probabilities(model, split, autocast, shifts)


class Counting(torch.optim.SGD):
    """SGD that keeps a counter among its settings, as optimizers without a learning rate do."""

    def __init__(self, params, lr, momentum=0, weight_decay=0):
        super().__init__(params, lr, momentum, weight_decay=weight_decay)
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
        return super().step(closure)


class Alike(nn.Module):
    """A transform that does the same to all images that it is called with; it remembers how many."""

    sizes: ClassVar[list] = []

    def forward(self, images, generator):
        self.sizes.append(len(images))
        return images + torch.rand((), generator=generator)
