"""Keras' simple MNIST convnet, with the fastest of its backends that is installed."""

import importlib
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EPOCHS = 15  # as it ships
# of one's name, the package; a first epoch took 17, 30 and 45 s on two cores of an AMD EPYC
BACKENDS = {"tensorflow": "tensorflow", "torch": "torch", "jax": "jax"}


def backend() -> str | None:
    """Return the backend to take, None where Keras is not installed."""
    if find_spec("keras") is None:
        return None
    return next((name for name, package in BACKENDS.items() if find_spec(package) is not None), None)


def train(folder: Path, seed: int, epochs: int) -> dict[str, Any]:
    """Return what ``run.train`` does. All 60,000 images are trained on; what it compiles is within the first epoch."""
    from peers.competitors import digits  # imports torch, which the process that starts others is to be without

    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and sys.platform == "linux":  # which JAX does not ask for
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    name = backend()
    assert name is not None
    os.environ["KERAS_BACKEND"] = name
    keras = importlib.import_module("keras")
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            *(keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(2)),
            *(layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(2), layers.Flatten()),
            *(layers.Dropout(0.5), layers.Dense(10, activation="softmax")),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    train, test = digits(folder, True), digits(folder, False)
    started = time.perf_counter()
    images, labels = _scaled(train), train.targets.numpy()
    seconds, rows = time.perf_counter() - started, []
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        model.fit(images, labels, batch_size=128, epochs=1, verbose=0)
        seconds += time.perf_counter() - started
        scores = model.evaluate(_scaled(test), test.targets.numpy(), batch_size=1000, verbose=0, return_dict=True)
        rows.append({"epoch": epoch, "seconds": seconds, "test_acc": 100 * scores["accuracy"]})
    return {"precision": "fp32", "images": epochs * len(labels), "seconds": seconds, "epochs": rows, "backend": name}


def _scaled(data: Any) -> Any:
    """Return the images as float32 [N, 28, 28, 1] in 0..1."""
    return data.data[..., None].numpy().astype("float32") / 255
