"""run.json: what it holds, key by key. Nothing of a run is read but through here, and nothing else is written."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mnist_exp.errors import UserError
from mnist_exp.reading import MIB, read_bytes, refusal

FORMAT = 1  # a later version may add keys without raising it
KEYS = 200  # that overrides name, at the most
_MOST = 4 * MIB
_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # of other keys only plain data


def _moment(text: str) -> str:
    try:
        datetime.datetime.fromisoformat(text or "2000-01-01")
    except ValueError as error:
        raise ValueError("a time in ISO 8601") from error
    return text


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float):
        raise ValueError("text or a number")
    return value


def _measured(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Refuse accuracies that are no percentages; a number that is not finite counts as not measured."""
    for key, value in metrics.items():
        if value is None or not math.isfinite(value):
            metrics[key] = None
        elif "_acc" in key and not 0 <= value <= 100:
            raise ValueError(f"percent in {key}, between 0 and 100")
    return metrics


Count = Annotated[int, Field(ge=0, le=10**12)]
Epoch = Annotated[int, Field(ge=0, le=10**9)]
Name = Annotated[str, Field(max_length=1000)]
Scalar = Annotated[Any, AfterValidator(_scalar)]
Moment = Annotated[str, AfterValidator(_moment)]  # or empty
Metric = Annotated[float, Field(allow_inf_nan=True)]


class Dataset(BaseModel):
    """The data of a run."""

    model_config = _STRICT

    name: Name
    train: Count  # images
    val: Count
    test: Count
    md5: Name | None  # None: nothing tells the data apart
    split_seed: int = 0
    classes: list[str] = []  # their names; versions before had none


class Recipe(BaseModel):
    """What repetitions share, so that it need not be found out from the config again."""

    model_config = _STRICT

    rule: int  # of the digest, see config/recipe.py
    digest: Name | None


class RunInfo(BaseModel):
    """A run. Accuracies are percent, times seconds, losses nats."""

    model_config = _STRICT

    format: Annotated[int, Field(ge=0, le=FORMAT)] = 0
    status: Literal["running", "finished", "failed", "interrupted", "pruned"]
    error: str | None = None
    traceback: str | None = None

    # what was asked for
    command: str | None = None
    overrides: list[str]
    name: Name = ""
    task_name: Scalar | None = None
    tags: list[Scalar] = []
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    prefix: Annotated[str, Field(max_length=200, pattern=r"^[\w.-]*$")]  # of its files, none of which lies elsewhere
    warm_start: str | None = None  # the run whose weights it began with
    recipe: Recipe | None = None
    named: Annotated[dict[str, Any], Field(max_length=KEYS)] | None = (
        None  # {key of an override: what it was composed to}
    )

    # with what, and where
    dataset: Dataset | None = None  # absent where it could not be read
    parameters: Count = 0
    device: Name = ""
    device_name: Name = ""
    precision: Name = ""
    memory_format: Name = ""
    ghosts: Name = ""
    versions: dict[str, Name | None] = {}
    git_sha: Name | None = None

    # how far it is
    started: Moment = ""
    seconds: Annotated[float, Field(ge=0, le=1e9)] = 0  # with those before it was resumed
    resumed: Count = 0  # times
    streams: Count = 0  # the rule of its random numbers, see training/state.py
    epochs_before: Count = 0  # of the runs whose weights it began with
    epoch: Epoch = 0  # finished
    epochs: Epoch = 0  # planned
    best_epoch: Epoch | None = None
    test_scored: Count = 0  # times
    metrics: Annotated[dict[str, Metric | None], AfterValidator(_measured)]


def read(file: Path) -> dict[str, Any]:
    """Return what a run.json holds, keys that are not there left out. Raises UserError naming the file and the key."""
    return _checked(read_bytes(file, _MOST), file)


def written(info: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], bytes]:
    """Return ``info`` as ``read`` will find it, and the text to write. Raises UserError for what it would refuse.

    Numbers that are not finite are null, what cannot be said in UTF-8 is escaped, other objects are their text.
    """
    content = (json.dumps(plain(info), indent=2) + "\n").encode()
    if len(content) > _MOST:
        raise UserError(f"{file} would be larger than {_MOST // MIB} MiB: is there so long a value?")
    return _checked(content, file), content


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can say it."""
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    return str(value).encode(errors="backslashreplace").decode()


def _checked(content: bytes, file: Path) -> dict[str, Any]:
    try:
        return RunInfo.model_validate_json(content).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise _refused(error.errors(include_url=False)[0], content, file) from error


def _refused(first: Any, content: bytes, file: Path) -> UserError:
    """Put pydantic's ``first`` error into our words."""
    if first["loc"] == ("format",) and first["type"] == "less_than_equal":
        return UserError(f"{file} was written by a newer mnist_exp (format {first['input']}, known: {FORMAT})")
    allowed = re.sub(r"^(Value error,|\w+ should be)", "it must be", first["msg"]).replace("String should", "it must")
    if first["type"] == "json_invalid":
        return refusal(file, first["msg"])
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return refusal(file, f"it has no {key}")
    found = repr(first["input"])
    return refusal(file, f"{key or 'it'} is {found if len(found) < 80 else found[:77] + '...'}; {allowed}")
