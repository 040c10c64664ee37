"""What is searched: the dimensions that a command line spans, and the points that are drawn from them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, read_write

from mnist_exp.config.build import instantiated
from mnist_exp.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

log = logging.getLogger(__name__)


@dataclass
class Space:
    """The searched keys with their distributions, and the overrides that are ``fixed`` for all trials.

    ``custom``: a function (config, trial) that draws more, by its dotted name.
    """

    dimensions: dict[str, BaseDistribution]
    fixed: list[str]
    custom: str | None = None

    @property
    def finite(self) -> bool:
        """Whether it has so many points and no more."""
        return all(hasattr(d, "choices") or getattr(d, "step", None) for d in self.dimensions.values())

    def draw(self, trial: Trial, config: DictConfig) -> dict[str, Any]:
        """Draw the parameters that ``trial`` has not yet got; return all."""
        for name, distribution in self.dimensions.items():
            suggest(trial, name, distribution)
        if self.custom:
            instantiated(OmegaConf.create({"_target_": self.custom, "_partial_": True}))(config, trial)
        return dict(trial.params)

    def baseline(self, config: DictConfig) -> dict[str, Any]:
        """Return the first point: ``search.baseline``, and the config's own value for every other key, where in range."""
        import optuna

        values, choices = {}, OmegaConf.select(config, "hydra.runtime.choices") or {}
        for name, distribution in self.dimensions.items():
            value = config.search.baseline.get(name, choices.get(name, OmegaConf.select(config, name)))
            try:
                optuna.create_trial(value=0.0, params={name: value}, distributions={name: distribution})
                values[name] = value
            except (ValueError, TypeError):
                log.warning("%s=%s of the baseline is outside its range, so the first trial draws it", name, value)
        return values

    def some_points(self) -> list[dict[str, Any]]:
        """Return a few points that have every choice of every searched config group."""
        some = {k: getattr(d, "low", None) or d.to_external_repr(0) for k, d in self.dimensions.items()}
        groups = {k: d.choices for k, d in self.dimensions.items() if "." not in k and hasattr(d, "choices")}
        return [some, *(some | {key: choice} for key, choices in groups.items() for choice in choices[1:])]


def read_space(params: Mapping[str, Any], arguments: list[str], custom: str | None) -> Space:
    """Return the space that ``params`` of the config and the overrides of the command line span, which win."""
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

    given = [f"{key}={value}" for key, value in params.items()] + arguments
    try:
        dimensions, fixed, deleted = create_params_from_overrides(given)
    except (ValueError, AssertionError, NotImplementedError) as error:
        reason = str(error) or "only interval, range, choice and single values can be searched"
        raise UserError(f"the search space cannot be read: {reason}. Given: {', '.join(given)}") from error
    searched = {name: dist for name, dist in dimensions.items() if name not in fixed}
    if not searched and not custom:
        raise UserError(
            "nothing to search over: give at least one key a range, as in 'optimizer.lr=interval(0.001,0.1)'"
        )
    return Space(searched, [f"{key}={value}" for key, value in fixed.items()] + deleted, custom)


def typed(distribution: Any) -> str:
    """Return an Optuna ``distribution`` as it is typed in an override."""
    if hasattr(distribution, "choices"):
        return f"choice({','.join('null' if c is None else str(c) for c in distribution.choices)})"
    low, high, step = distribution.low, distribution.high, distribution.step
    if step and not (step == 1 and isinstance(high, int)):
        return f"range({low},{high + step if isinstance(high, int) else float(f'{high + step:.6g}')},{step})"  # the end itself is left out
    text = f"tag(log,interval({low},{high}))" if distribution.log else f"interval({low},{high})"
    return f"int({text})" if isinstance(high, int) else text


def suggest(trial: Trial, name: str, distribution: Any) -> Any:
    """Draw ``name`` from an Optuna ``distribution`` for ``trial``, or return what it has drawn before."""
    if hasattr(distribution, "choices"):
        return trial.suggest_categorical(name, distribution.choices)
    draw = trial.suggest_float if type(distribution).__name__ == "FloatDistribution" else trial.suggest_int
    return draw(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def build_sampler(config: DictConfig, space: Space, existing: int, shared: bool) -> tuple[BaseSampler, int | None]:
    """Return the sampler of ``config``, and how many points it has in all (None: no end).

    A seeded one starts elsewhere for each number of ``existing`` trials, or it would propose its first points again;
    for ``shared`` studies it has no seed, since equal seeds of several sweepers would mean equal points.
    """
    config = config.copy()
    # the grid's order is part of what is stored in the study, so there the seed stays
    if config.get("seed") is not None and not str(config.get("_target_")).endswith("GridSampler"):
        with read_write(config):
            config.seed = None if shared else config.seed + existing
    sampler = instantiated(config)
    if not isinstance(sampler, functools.partial):
        return sampler, None
    # the grid sampler wants to know the grid
    from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl

    grid = {name: OptunaSweeperImpl._to_grid_sampler_choices(dist) for name, dist in space.dimensions.items()}
    return sampler(grid), functools.reduce(lambda n, values: n * len(values), grid.values(), 1)
