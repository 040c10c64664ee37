"""What was asked for: the composed config, where its run goes, and how it was said. The only reader of Hydra's globals."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from mnist_exp.checked import checked
from mnist_exp.config.build import refused
from mnist_exp.config.elsewhere import places, refuse_endless, refuse_places, refuse_resolvers
from mnist_exp.config.ours import config_folder
from mnist_exp.config.own_parts import without_keys_of_others
from mnist_exp.config.recipe import PLACES, RESUMABLE, below, flatten, modernised
from mnist_exp.console import without_password
from mnist_exp.errors import UserError, require
from mnist_exp.files import expanded
from mnist_exp.named import PICTURES

log = logging.getLogger(__name__)


def compose(*overrides: str) -> DictConfig:
    """Return the config that ``python -m mnist_exp train OVERRIDES`` would run. Raises UserError."""
    import hydra

    running = GlobalHydra.instance().hydra  # it may be called inside a search
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_folder()):
            return without_keys_of_others(hydra.compose("train", overrides=list(overrides)), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(plain_message(error)) from error
    finally:
        GlobalHydra.instance().hydra = running


def checked_config(*overrides: str) -> DictConfig:
    """Return ``compose(OVERRIDES)`` for building, as a run would get it. Raises UserError where a run would."""
    config = _modern(compose(*overrides))
    refuse_endless(OmegaConf.to_container(config), "the composed config")  # type: ignore[arg-type]
    check_config(config)
    _check_keys(config)
    return config


def plain_message(error: Exception) -> str:
    """Return Hydra's message without its search path, with its cause, and how to build what is not allowed."""
    text = str(error).partition("Config search path")[0]
    message = "\n".join(line.expandtabs(2) for line in text.splitlines() if line.strip())
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes[1:]:
        first = f"{cause}".strip().partition("\n")[0]
        if first and first not in message:
            message += f"\n{first}"
    if "No module named" in message:
        message += ". Modules are looked for in the folder where you stand, and among what is installed"
    unknown = re.search(r"Could not override '([\w.]+)'", message)
    return refused(message) or (_unknown(unknown[1]) if unknown else message)


def _unknown(key: str) -> str:
    """Return what to say of a key that is not among those of what is composed."""
    from mnist_exp.config.explained import Explained

    known = Explained().known
    if key in known:
        return f"{key} is a key of other choices than these; python -m mnist_exp explain {key} tells of which"
    last = key.rpartition(".")[2]
    near = [one for one in known if one.endswith(f".{last}")] or [one for one in known if f"_{last}" in one]
    near = near or difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(last, known, 1)
    meant = f"; did you mean {' or '.join(near[:4])}?" if near else "."
    return f"there is no key {key}{meant} A part of your own that takes it gets it with a plus: +{key}=VALUE"


def _typed(hydra: Any) -> str:
    """Return the command line of this process; in a launcher's worker, whose own says nothing, what runs this run again."""
    words = sys.orig_argv
    if "mnist_exp" in words or any(Path(word).stem == "mnist-exp" for word in words):
        return shlex.join([Path(words[0]).name, *words[1:]])
    folders = [source.path for source in hydra.runtime.config_sources if source.provider.endswith("command-line")]
    from_folders = [word for folder in folders for word in ("--config-dir", folder)]
    return shlex.join(["python", "-m", "mnist_exp", "train", *from_folders, *hydra.overrides.task])


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be carried out. ``hydra`` is Hydra's own part of what was composed.

    ``resume``: the run folder to go on with or to start from. ``wanted``: the one metric that is asked for (None: all).
    ``clock``: when it was asked for, by time.monotonic. ``changes``: what resuming changes of an unfinished run's recipe.
    """

    config: DictConfig
    folder: Path
    overrides: list[str]
    command: str
    hydra: DictConfig
    resume: Path | None = None
    wanted: str | None = None
    clock: float = dataclasses.field(default_factory=time.monotonic)
    changes: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def from_hydra(cls, config: DictConfig, command: str | None = None) -> Job:
        """Return what Hydra was asked for, inside the function that it calls with ``config``.

        ``command``: how it was said, if not on the command line of this process.
        """
        refuse_endless(OmegaConf.to_container(config), "the composed config")  # type: ignore[arg-type]
        hydra: Any = HydraConfig.get()
        command = command or _typed(hydra)
        wanted = None
        if OmegaConf.is_dict(config.search):
            command = f"trial {config.search.trial} of the search {hydra.sweeper.study_name}"
            wanted = config.optimized_metric
        resume = None if config.resume is None else expanded(config.resume).absolute()
        folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        config = without_keys_of_others(_modern(config), overrides)
        return cls(config, folder, overrides, without_password(command), hydra, resume, wanted)

    def check(self) -> None:
        """Raise UserError for what no component would notice."""
        check_config(self.config)
        _check_keys(self.config)

    def values(self) -> dict[str, Any]:
        """Return the config as plain data, its references resolved."""
        return OmegaConf.to_container(self.config, resolve=True)  # type: ignore[return-value]

    def files(self) -> dict[str, str]:
        """Return the files of .hydra: {name: text}."""
        return {
            "config.yaml": OmegaConf.to_yaml(self.config),
            "hydra.yaml": without_password(OmegaConf.to_yaml({"hydra": self.hydra})),
            "overrides.yaml": OmegaConf.to_yaml(self.overrides),
        }

    @property
    def reads_only(self) -> bool:
        """Whether nothing may be written to ``data.root``, which a run folder names that may be somebody else's."""
        root, data = (OmegaConf.select(self.config, key) for key in ("data.root", "paths.data"))
        return self.resume is not None and not (root and _real(root).is_relative_to(_real(data)))

    def going_on(self, saved: Any, file: Path) -> Job:
        """Return the job of an unfinished run, its config ``saved`` in ``file``, with what may change of this one.

        Where it writes beside its folder is said by this one. Raises UserError if more was to change, or if ``saved`` is
        no config of a run.
        """
        self.check()  # what was typed
        config = self._saved(saved, file)
        for override in self.overrides:
            key = override.partition("=")[0].lstrip("+~")
            if not below(key, RESUMABLE):
                raise UserError(
                    f"{key} cannot change while {self.resume} is resumed: it would be another run. Leave it out, or "
                    f"start anew. What may change: {', '.join(k for k in RESUMABLE if k != 'resume')}"
                )
            if key != "resume":
                OmegaConf.update(config, key, OmegaConf.select(self.config, key), merge=False, force_add=True)
        changes = [o for o in self.overrides if not below(o.partition("=")[0], PLACES)]
        if changes and config.search is not None:
            raise UserError(f"{self.resume} is a trial of a search, like its others: leave out {' '.join(changes)}")
        return dataclasses.replace(self, config=config, changes=changes)

    def _saved(self, saved: Any, file: Path) -> DictConfig:
        """Return ``saved`` with the places of this job in it; but for ``data.root``, which is only read."""
        here: Any = OmegaConf.to_container(self.config)
        _check_whole(saved, file, here)
        own = ("paths", "resume", "logger", "data")
        refuse_places({key: value for key, value in saved.items() if key not in own}, file)
        left_out = places({"logger": saved["logger"]})
        logger = here["logger"] if left_out else saved["logger"]
        if "${paths.outputs}" in str(logger) and saved["paths"] != here["paths"]:
            left_out.append("paths.outputs")  # where it has written
        if left_out:
            log.warning("not taken from %s: %s; type what is wanted of it", file, ", ".join(left_out))
        return restored(saved, file, {"paths": here["paths"], "resume": here["resume"], "logger": logger})


def restored(saved: Any, file: Path, here: dict[str, Any]) -> DictConfig:
    """Return the config ``saved`` in a run's ``file``, to be built from, with what is ``here`` in place of its own.

    Raises UserError naming the file if it is no config of a run, or resolves more than references.
    """
    _check_whole(saved, file, {key: {} for key in ("model", "data", "evaluate", "trainer")})
    refuse_resolvers(saved := {**saved, **here}, file)
    refuse_endless(saved, file)
    try:
        config = _modern(saved)
        _check_keys(config)
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    return config


def _check_whole(saved: Any, file: Path, here: dict[str, Any]) -> None:
    """Raise UserError unless ``saved`` has the keys and groups that are ``here``."""
    if not isinstance(saved, dict):
        raise UserError(f"{file} is damaged: it must hold keys and values")
    groups = [key for key, value in here.items() if isinstance(value, dict) and key not in ("logger", "search")]
    wrong = [key for key in here if key not in saved or (key in groups and not isinstance(saved[key], dict))]
    if wrong:
        raise UserError(f"{file} is damaged: it has no {', '.join(wrong)}")


def _real(folder: object) -> Path:
    return expanded(folder).resolve()


def check_config(config: DictConfig) -> None:
    """Raise UserError for keys that nothing reads, and for values that would bring the environment into files."""
    refuse_unknown(config)
    refuse_resolvers(OmegaConf.to_container(config), "the composed config")


def refuse_unknown(config: DictConfig) -> None:
    """Raise UserError for a key beside the groups that nothing reads, neither mnist_exp nor a reference."""
    primary = yaml.safe_load(Path(config_folder(), "train.yaml").read_text())
    groups = (next(iter(choice)) for choice in primary.pop("defaults") if isinstance(choice, dict))
    known = {*primary, *groups}
    tree: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    text = OmegaConf.to_yaml(config)
    for key in tree.keys() - known:
        if re.search(rf"\$\{{{re.escape(key)}[.}}]", text):
            continue
        wrong = next(iter(flatten({key: tree[key]})), key)
        real = [*known, *flatten({k: tree[k] for k in tree.keys() & known})]
        near = difflib.get_close_matches(wrong, real, 1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(known))}"
        raise UserError(f"{wrong} is no key that anything reads, so it would change nothing. {hint}")


def _check_keys(config: DictConfig) -> None:
    """Raise UserError for values of keys that belong to no component."""
    named = {key: config[key] for key in ("seed", "task_name", "tags", "save_prefix", "search")}
    values: Any = OmegaConf.to_container(OmegaConf.create(named))
    keys_of_no_group(**values)
    kinds = OmegaConf.to_container(config.paths).get("figures", ["png"])  # type: ignore[union-attr]
    fine = isinstance(kinds, list) and bool(kinds) and set(map(str, kinds)) <= {*PICTURES}
    require(fine, "paths.figures", kinds, f"a list of some of {', '.join(PICTURES)}, such as [png,pdf]")


@checked
def keys_of_no_group(
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)],
    task_name: str | int | float | None,
    tags: Annotated[list[str | int | float | bool | None], Field(description="such as [baseline]")],
    save_prefix: Annotated[str, Field(pattern=r"^[\w.-]+$", description="letters, digits, '_', '-' and '.'")],
    search: dict[str, Any] | None,
) -> None:
    """Check the keys of train.yaml itself."""


def _modern(config: Any) -> DictConfig:
    """Return ``config`` with today's names of what it builds."""
    plain = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    current = OmegaConf.create(modernised(plain))
    OmegaConf.set_struct(current, True)
    return current
