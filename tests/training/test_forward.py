"""The compiled forward pass: taken where it agrees with the plain one, left where it cannot be had; and what a step waits for."""

import re
from functools import partial

import pytest
import torch
from helpers import SMALL, info
from torch.utils._python_dispatch import TorchDispatchMode

from mnist_exp import compose
from mnist_exp.parts.optim import Lookahead
from mnist_exp.runs.folder import RunFolder
from mnist_exp.training import forward, loop
from mnist_exp.training.components import _kernels, build_components
from mnist_exp.training.progress import Newest


def same(place) -> bool:
    """Whether the runs "plain" and "auto" ended with the same bits."""
    paths = [place / name / "checkpoints" / "last.pth" for name in ("plain", "auto")]
    plain, auto = (torch.load(path, weights_only=True)["model"] for path in paths)
    return plain.keys() == auto.keys() and all(torch.equal(plain[name], auto[name]) for name in plain)


def as_compiled(monkeypatch, make):
    """Have torch.compile return what ``make`` does of a model, and have "auto" take it on this machine."""
    monkeypatch.setattr(forward, "_pays", lambda device, steps: True)
    monkeypatch.setattr(torch, "compile", lambda model, **options: make(model))


class Counted(torch.nn.Module):
    """A model that counts its calls."""

    def __init__(self, model):
        super().__init__()
        self.model, self.sizes = model, []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.model(images)


def test_compiling_changes_no_bit_but_those_of_the_compiler(command, place, monkeypatch):
    arguments = [*SMALL, "data.batch_size=48", "evaluate.bn_update_batch_size=100"]
    assert command(*arguments, "trainer.compile=off", "hydra.run.dir=plain").status == 0
    made = []
    as_compiled(monkeypatch, lambda model: made.append(Counted(model)) or made[-1])
    found = command(*arguments, "hydra.run.dir=auto")
    assert found.status == 0
    assert "compiled the model" in found.out
    (counted,) = made
    assert set(counted.sizes) == {48, 100}  # not the last batch of an epoch, of 32
    assert same(place)


class Off(torch.nn.Module):
    """A compiler's mistake: outputs that are off."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return 1.5 * self.model(images)


class Broken(torch.nn.Module):
    """Nothing that runs."""

    def forward(self, images):
        raise RuntimeError("no compiler\nfound")


def test_what_cannot_be_compiled_is_trained_without(command, place, monkeypatch):
    assert command(*SMALL, "hydra.run.dir=plain").status == 0
    as_compiled(monkeypatch, lambda model: Broken())
    found = command(*SMALL, "hydra.run.dir=auto")
    assert found.status == 0
    assert "torch.compile cannot compile this model (no compiler found); going on without" in found.out
    assert same(place)


def test_compiling_that_was_asked_for_and_is_wrong_is_said_before_the_first_step(command, monkeypatch):
    as_compiled(monkeypatch, Off)
    found = command(*SMALL, "trainer.compile=on")
    assert found.status == 1
    assert re.search(r"with a relative error of 0\.\d+\)\. Try trainer\.compile=off", found.err)
    assert "epoch 1" not in found.out


def test_a_compiled_model_that_fails_later_is_left(command, monkeypatch):
    class Late(Counted):
        def forward(self, images):
            if len(self.sizes) == 2:
                raise RuntimeError("out of registers")
            return super().forward(images)

    as_compiled(monkeypatch, Late)
    found = command(*SMALL)
    assert found.status == 0
    assert "out of registers" in found.out


def test_random_layers_are_compared_without_their_randomness():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(784, 10))
    trainer = build_components(compose("data=sample", "model=small_cnn", "trainer.compile=on")).trainer
    tried = forward.Forward(model, trainer, {8}, 1)
    before = torch.get_rng_state()
    with tried._untouched():
        assert tried._apart(model, torch.rand(8, 1, 28, 28)) < 1e-6
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_compile_pays_on_a_gpu_in_a_long_run_only(monkeypatch):
    monkeypatch.setattr(forward.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert not forward._pays(torch.device("cpu"), 10**6)
    assert not forward._pays(torch.device("cuda:0"), 1000)
    assert forward._pays(torch.device("cuda:0"), 50_000)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not forward._pays(torch.device("cuda:0"), 50_000)


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        indices = arguments[1] if name == "index" else ()
        if name in self.NAMES or any(i is not None and i.dtype == torch.bool for i in indices):
            self.found.append(name)
        return function(*arguments, **(options or {}))


def guard_steps(monkeypatch, guard):
    """Have every epoch's steps taken under ``guard``, as on a GPU: no number is read on the way."""
    train = loop.Loop._train

    def guarded(self):
        self.on_cpu = False
        with guard:
            return train(self)

    monkeypatch.setattr(loop.Loop, "_train", guarded)


@pytest.mark.parametrize(
    ("optimizer", "half", "fused", "waiting"),
    [
        ("lookahead_sgd", False, False, False),
        ("lookahead_sgd", True, True, False),
        ("adamw", True, True, False),
        # only a scaler around an optimizer without fused kernels waits: that is why GPUs get those
        ("lookahead_sgd", True, False, True),
    ],
)
def test_no_step_waits_for_a_gpu(command, monkeypatch, optimizer, half, fused, waiting):
    if half:  # on a CPU there is no fp16 training, but its scaler of gradients
        scaler = torch.amp.GradScaler
        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=True))
    waits = Waits()
    monkeypatch.setattr(Newest, "read", lambda self, numbers, at: None)  # test_training_on_a_gpu has it on
    arguments = [*SMALL, "augment.mix.prob=0.9", f"optimizer={optimizer}", *["+optimizer.fused=true"] * fused]
    guard_steps(monkeypatch, waits)
    assert command(*arguments).status == 0
    assert bool(waits.found) == waiting, waits.found


def test_gpus_get_fused_kernels_of_torchs_own_optimizers():
    class Mine(torch.optim.SGD):
        """With a step of its own, perhaps."""

    gpu, cpu, sgd = torch.device("cuda"), torch.device("cpu"), torch.optim.SGD
    assert _kernels(partial(sgd, lr=0.1), gpu) == {"fused": True}
    assert _kernels(partial(Lookahead, base=partial(sgd), lr=0.1), gpu) == {"fused": True}
    left = [
        (partial(sgd), cpu),
        (partial(Mine), gpu),
        (partial(Mine, base=sgd), gpu),
        (partial(sgd, foreach=True), gpu),
    ]
    left += [(partial(Lookahead, base=partial(Mine)), gpu), (partial(torch.optim.RMSprop), gpu)]
    assert [_kernels(*asked) for asked in left] == [{}] * len(left)


@pytest.mark.parametrize("optimizer", ["lookahead_sgd", "sgd"])
def test_a_first_step_that_the_scaler_forbids_leaves_no_momentum(monkeypatch, optimizer):
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, float("nan")))  # as memory may be
    overrides = ["data=sample", "model=small_cnn", "model.channels=[2,2,2]", f"optimizer={optimizer}"]
    parts = build_components(compose(*overrides, "+optimizer.fused=true"))
    scaler, weights = torch.amp.GradScaler("cpu", init_scale=4.0), list(parts.model.parameters())
    before = weights[0].detach().clone()
    for gradient in (float("inf"), 1.0, 1.0):
        scaler.scale(sum(weight.sum() * gradient for weight in weights)).backward()
        scaler.step(parts.optimizer)
        scaler.update()
        parts.optimizer.zero_grad()
    moved = before - weights[0].detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 + 0.019), rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["small_cnn", "wide_small_resnet"])
def test_torch_compile_computes_the_same(command, place, model):
    arguments = [*SMALL, f"model={model}", "model.channels=[8,16,24]", "model.ghost_batch_size=8", "data.batch_size=32"]
    assert command(*arguments, "trainer.compile=off", "hydra.run.dir=plain").status == 0
    found = command(*arguments, "trainer.compile=on", "hydra.run.dir=compiled")
    assert found.status == 0
    assert "compiled the model" in found.out
    losses = [[row["train_loss"] for row in RunFolder.open(place / run).history()] for run in ("plain", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiling", ["off", "on"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["lookahead_sgd", "adamw"])
def test_training_on_a_gpu(command, place, monkeypatch, precision, compiling, optimizer):
    class Guard:
        """torch's own: an operation that waits raises an error. The first epoch may compile, which waits."""

        epochs = 0

        def __enter__(self):
            Guard.epochs += 1
            torch.cuda.set_sync_debug_mode("error" if Guard.epochs > 1 else "default")

        def __exit__(self, *exception):
            torch.cuda.set_sync_debug_mode("default")

    guard_steps(monkeypatch, Guard())
    arguments = [*SMALL, "augment.mix.prob=0.9", f"optimizer={optimizer}", "schedule.initial_epochs=3"]
    arguments += ["trainer.device=cuda", f"trainer.precision={precision}", f"trainer.compile={compiling}"]
    assert command(*arguments, "hydra.run.dir=gpu").status == 0
    assert command(*arguments, "hydra.run.dir=plain", "trainer.compile=off", "trainer.precision=fp32").status == 0
    assert info(place / "gpu")["precision"] == precision
    losses = [[row["train_loss"] for row in RunFolder.open(place / run).history()] for run in ("plain", "gpu")]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.gpu
@needs_gpu
def test_a_number_arrives_from_a_gpu_without_waiting():
    newest, numbers = Newest(), torch.tensor([3.0, 4.0], device="cuda")
    assert newest.read(numbers, 7) is None
    numbers += 1
    torch.cuda.synchronize()
    assert newest.read(numbers, 8) == ([3.0, 4.0], 7)
