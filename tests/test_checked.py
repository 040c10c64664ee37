"""Arguments against their annotations: what is refused, and in which words."""

import pickle
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field

from mnist_exp.checked import Count, Positive, Share, allowed, check_arguments, checked
from mnist_exp.errors import WrongValue


@checked
class Part:
    def __init__(
        self,
        share: Share,
        count: Count | None = None,
        pair: Annotated[Sequence[Positive], Field(min_length=2, max_length=2)] = (1.0, 2.0),
        kind: Literal["a", "b", "c"] = "a",
        on: bool = True,
        layer: torch.nn.Module | None = None,
    ):
        self.share, self.count, self.pair = share, count, pair


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 2}, "share is 2; it must be a number between 0 and 1"),
        ({"share": "x"}, "share is 'x'; it must be a number between 0 and 1"),
        ({"share": True}, "share is True; it must be a number between 0 and 1"),
        ({"share": float("nan")}, "share is nan; it must be a number between 0 and 1"),
        ({"share": None}, "share is None; it must be a number between 0 and 1"),
        ({}, "share is missing; it must be a number between 0 and 1"),
        ({"share": 1, "count": 0}, "count is 0; it must be a whole number at least 1 or null"),
        ({"share": 1, "count": 1.5}, "count is 1.5; it must be a whole number at least 1 or null"),
        ({"share": 1, "pair": [1, 0]}, "pair is [1, 0]; it must be a list of 2, each a number above 0"),
        ({"share": 1, "pair": [1]}, "pair is [1]; it must be a list of 2, each a number above 0"),
        ({"share": 1, "pair": 3}, "pair is 3; it must be a list of 2, each a number above 0"),
        ({"share": 1, "kind": "d"}, "kind is d; it must be a, b or c"),
        ({"share": 1, "on": "maybe"}, "on is 'maybe'; it must be true or false"),
        ({"share": 1, "more": 1}, "more is 1; it must be left out: Part takes share, count, pair, kind, on, layer"),
    ],
)
def test_a_wrong_argument_is_one_sentence(options, message):
    with pytest.raises(WrongValue) as caught:
        Part(**options)
    assert str(caught.value) == message
    assert str(caught.value.below("model")) == f"model.{message}"


def test_a_wrong_argument_of_any_name_is_named():
    @checked
    def names(**ages: int) -> None:
        pass

    with pytest.raises(WrongValue, match="anna is 'x'; it must be a whole number"):
        names(bert=3, anna="x")


def test_errors_come_back_whole_from_other_processes():
    with pytest.raises(WrongValue) as caught:
        Part(2)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.name) == (str(caught.value), "share")


def test_a_wrong_positional_argument_is_named_too():
    with pytest.raises(WrongValue, match="share is 7"):
        Part(7)


def test_what_fits_is_taken_as_it_is():
    layer, pair = torch.nn.Identity(), [1.5, 2.5]
    part = Part(0.5, 3, pair, "b", False, layer)
    assert (part.share, part.count, part.pair) == (0.5, 3, pair)
    assert isinstance(part, Part)


def test_what_the_body_raises_passes_through():
    @checked
    def fail(n: int) -> None:
        raise KeyError(n)

    with pytest.raises(KeyError):
        fail(1)


def test_functions_of_other_libraries_are_checked_by_their_own_annotations():
    check_arguments(torch.optim.AdamW, {"lr": 0.1, "betas": [0.9, 0.99], "foreach": None, "unknown": object()})
    for name, value in (("lr", "fast"), ("betas", [0.9]), ("foreach", 3), ("weight_decay", [1])):
        with pytest.raises(WrongValue, match=name):
            check_arguments(torch.optim.AdamW, {name: value})

    def odd(x: "Nothing") -> None:  # noqa: F821
        pass

    check_arguments(odd, {"x": 1})


def test_any_annotation_has_words():
    assert allowed(torch.nn.Module) == "a Module"
    assert allowed(int | str) == "a whole number or text"
    assert (
        allowed(Annotated[float, Field(gt=0, lt=2.5, description="pixels")])
        == "a number above 0 and below 2.5 (pixels)"
    )
    assert allowed(dict[str, Any]) == "keys and values"
