"""How fast is the strong pipeline on whole batches, beside torchvision on PIL images with 4 workers, and kornia?

All three do crop after padding 4, rotation of +-8 degrees, normalisation and random erasing, on the CPU, in turn.
kornia is left out, saying so, where it is not installed (pip install kornia).

    python scripts/bench_augment.py [--rounds 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mnist_exp.parts.augment import Compose, Normalize, RandomCrop, RandomErasing, RandomRotation
from mnist_exp.vision import import_torchvision

BATCH, MEAN, STD = 256, 0.1307, 0.3081


class Digits(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """PIL images with torchvision's transforms, as most MNIST scripts have it."""

    def __init__(self, images: torch.Tensor):
        transforms = import_torchvision("torchvision.transforms")
        image = __import__("PIL.Image", fromlist=["Image"])
        self.images = [image.fromarray(i.numpy()) for i in images]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(28, padding=4),
                transforms.RandomRotation(8),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(0.25, (0.02, 0.15)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    images = torch.randint(0, 256, (40 * BATCH, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    strong = Compose(
        crop=RandomCrop(4),
        rotation=RandomRotation(8),
        normalize=Normalize(MEAN, STD),
        erasing=RandomErasing(0.25),
    )

    def ours() -> int:
        for batch in images.split(BATCH):
            strong(batch.unsqueeze(1).float().div_(255), generator)
        return len(images)

    def pil() -> int:
        loader = torch.utils.data.DataLoader(Digits(images), BATCH, num_workers=4)
        return sum(len(batch) for batch, _ in loader)

    candidates: dict[str, Callable[[], int]] = {"mnist_exp": ours, "PIL loader, 4 workers": pil}
    try:
        import kornia.augmentation as K

        pipeline = torch.nn.Sequential(
            K.RandomCrop((28, 28), padding=4),
            K.RandomRotation(8.0, p=1.0),
            K.Normalize(torch.tensor([MEAN]), torch.tensor([STD])),
            K.RandomErasing((0.02, 0.15), p=0.25),
        )

        def kornia() -> int:
            for batch in images.split(BATCH):
                pipeline(batch.unsqueeze(1).float().div_(255))
            return len(images)

        candidates["kornia"] = kornia
    except ImportError as error:
        print(f"kornia: not measured, {error}")

    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(options.rounds + 1):
        for name, candidate in candidates.items():
            started = time.perf_counter()
            count = candidate()
            if round_:  # the first round warms up
                speeds[name].append(count / (time.perf_counter() - started))
    own = speeds["mnist_exp"]
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(own, values, strict=True))
        print(f"{name:22} {statistics.median(values):10,.0f} images/s   mnist_exp is {ratio:.1f} x as fast")


if __name__ == "__main__":
    main()
