"""Reading files that may come from anyone: regular files of bounded size only, and nothing but plain data in them.

Whatever is wrong with a file is one UserError that names it.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import yaml

from mnist_exp.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MIB = 2**20
_YAML, _KEPT = MIB, 2**16  # bytes, and of those that are kept; a run's are about 4,000, with 200 values, 5 deep
_VALUES, _DEPTH, _NUMBER = 10_000, 32, 100  # in a YAML file; letters of a number
_ARRAYS, _DIRECTORY = 128 * MIB, 4096  # of an archive: bytes of what is read of it; of its table of contents
_HEADER = re.compile(
    rb"\{'descr': '([<>|][iuf][1248])', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}(?:, \d{1,18})*)?),?\), \}\s*"
)
_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}
_TEXT = "tag:yaml.org,2002:str"
_EMPTY: dict[Any, type] = {yaml.SequenceStartEvent: list, yaml.MappingStartEvent: dict}


def refusal(file: Path, reason: object) -> UserError:
    """Return the error that says why ``file`` cannot be read."""
    return UserError(f"{file} cannot be read: {' '.join(str(reason).split())}")


def open_regular(file: Path) -> io.BufferedReader:
    """Open a regular file; of a link, what it leads to. Raises UserError: a pipe or a device is never opened.

    To open one may wait for ever, or set a device going.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise refusal(file, "it is not a regular file")
        opened = open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115
        if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            return opened
        opened.close()
    except (OSError, ValueError) as error:  # a name may hold what no path may
        raise refusal(file, getattr(error, "strerror", error)) from error
    raise refusal(file, "it is not a regular file")


def read_bytes(file: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes. Raises UserError."""
    with open_regular(file) as opened:
        try:
            size = os.fstat(opened.fileno()).st_size
            content = b"" if size > most else opened.read(size)
        except OSError as error:
            raise refusal(file, error.strerror) from error
    if size > most:
        raise refusal(file, f"it is larger than {most:,} bytes")
    return content


def read_text(file: Path, most: int) -> str:
    """Return the UTF-8 text of a file, as ``read_bytes`` reads it. Raises UserError."""
    try:
        return read_bytes(file, most).decode()
    except UnicodeDecodeError as error:
        raise refusal(file, f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error


# ---------------------------------------------------------------------------------------------------------------- YAML


def load_yaml(file: Path) -> Any:
    """Return what a YAML file holds, as dict, list, str, int, float, bool and None. Not to be changed: it is read once.

    Dates are text; ``1e-3`` is a number, as OmegaConf has it. Raises UserError for tags, anchors and aliases, keys that
    appear twice, and where it is larger or deeper than any config.
    """
    try:
        found = file.stat()
    except (OSError, ValueError) as error:
        raise refusal(file, getattr(error, "strerror", error)) from error
    read = _yaml if found.st_size <= _KEPT else _yaml.__wrapped__  # many large ones would fill the memory
    value, reason = read(file, found.st_mtime_ns, found.st_size)
    if reason is not None:
        raise UserError(reason)
    return value


def read_yaml(file: Path) -> Any:
    """Return what ``load_yaml`` does; None if the file cannot be read."""
    try:
        return load_yaml(file)
    except UserError:
        return None


@functools.lru_cache(maxsize=4096)
def _yaml(file: Path, changed: int, size: int) -> tuple[Any, str | None]:
    """Return what a YAML file holds, and why it cannot be read if it cannot."""
    try:
        return _plain(read_text(file, _YAML)), None
    except UserError as error:
        return None, str(error)
    except (yaml.YAMLError, ValueError) as error:
        return None, str(refusal(file, error))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Gives events, and tells which scalars are numbers."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in found if tag in _SCALARS]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _plain(text: str) -> Any:
    """Build what YAML ``text`` says from its events, since the parser's own building recurses and follows aliases."""
    if re.search(r"^%", text, re.MULTILINE):
        raise ValueError("it has directives (lines that begin with %)")  # many of them take quadratic time
    loader = _Loader(text)
    documents: list[Any] = []
    stack: list[Any] = [documents]
    keys: list[Any] = [
        None
    ]  # of the mapping at the same place of the stack: the key whose value comes next, in a tuple
    for event in _events(loader):
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            keys.pop()
            continue
        value = _scalar(loader, event) if isinstance(event, yaml.ScalarEvent) else _EMPTY[type(event)]()
        container, key = stack[-1], keys[-1]
        if isinstance(container, list):
            container.append(value)
        elif key is not None:
            container[key[0]], keys[-1] = value, None
        elif value is None or isinstance(value, list | dict) or value in container:
            raise ValueError(f"{value!r} cannot be a key here, or is one twice (line {event.start_mark.line + 1})")
        else:
            keys[-1] = (value,)
        if isinstance(value, list | dict):
            stack.append(value)
            keys.append(None)
    if len(documents) > 1:
        raise ValueError("it holds more than one document")
    return documents[0] if documents else None


def _events(loader: Any) -> Iterator[Any]:
    """Yield the events that make values, as long as they are few and not deep."""
    depth = count = 0
    while loader.check_event():  # one at a time: the parser takes quadratic time for what is very deep
        event = loader.get_event()
        line = event.start_mark.line + 1
        if not isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            continue
        count += 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH or count > 2 * _VALUES:
            raise ValueError(f"it is more than {_DEPTH} deep, or has more than {_VALUES:,} values")
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError(f"it has tags, anchors or aliases (line {line})")
        yield event


def _scalar(loader: Any, event: Any) -> Any:
    short = len(event.value) <= _NUMBER  # what is longer is no number
    node = yaml.ScalarNode(
        loader.resolve(yaml.ScalarNode, event.value, event.implicit) if short else _TEXT, event.value
    )
    value = loader.yaml_constructors[node.tag](loader, node)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{event.value} has more than 64 bits (line {event.start_mark.line + 1})")
    return value


# -------------------------------------------------------------------------------------------------------------- arrays


def read_arrays(file: Path, *names: str) -> list[np.ndarray] | None:
    """Return arrays of numbers from an .npz file, no more than 128 MiB of them; None if one is not there.

    Nothing is unpickled. Raises UserError.
    """
    content = read_bytes(file, _ARRAYS // 2)
    try:
        # the end says how large the table of contents is, which zipfile reads whole
        if content[-22:-18] != b"PK\5\6" or int.from_bytes(content[-10:-6], "little") > _DIRECTORY:
            raise ValueError("it is cut off, or no archive of a few arrays")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if not {f"{name}.npy" for name in names} <= set(archive.namelist()):
                return None
            members = [archive.getinfo(f"{name}.npy") for name in names]
            if sum(member.file_size for member in members) > _ARRAYS:
                raise ValueError(f"its arrays are larger than {_ARRAYS // MIB} MiB")
            return [_array(archive, member) for member in members]
    except Exception as error:  # zipfile and zlib make many things of damaged bytes
        raise refusal(file, error) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array as its header describes it, if that is what there is."""
    import numpy as np

    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in another way than NumPy does")
    with archive.open(member) as opened:
        content = opened.read(member.file_size)  # at once would be as much as it unpacks to, whatever its size says
    rest = io.BytesIO(content)
    kind, shape, by_columns = array_header(rest, member.filename)
    if math.prod(shape) * kind.itemsize != len(content) - rest.tell():
        raise ValueError(f"{member.filename} does not hold the {kind} {shape} that it says")
    return np.frombuffer(content, kind, offset=rest.tell()).reshape(shape, order="F" if by_columns else "C")


def array_header(file: IO[bytes], name: str) -> tuple[np.dtype[Any], list[int], bool]:
    """Read what an .npy file says of the numbers behind: their type, the shape, and whether they lie column by column.

    Raises ValueError with its ``name`` if it is none as NumPy writes it.
    """
    import numpy as np

    start = file.read(10)
    header = file.read(int.from_bytes(start[8:10], "little")) if start[:8] == b"\x93NUMPY\1\0" else b""
    found = _HEADER.fullmatch(header)
    if found is None:
        raise ValueError(f"{name} is no array of numbers as NumPy writes it")
    try:
        kind = np.dtype(found[1].decode())
    except TypeError as error:  # such as <f1
        raise ValueError(f"{name} is no array of numbers as NumPy writes it") from error
    return kind, [int(size) for size in re.findall(rb"\d+", found[3])], found[2] == b"True"


# ------------------------------------------------------------------------------------------------------------ archives


def open_zip(file: io.BufferedReader, most: int) -> zipfile.ZipFile:
    """Open an archive of at most ``most`` files. Raises ValueError if it has more, BadZipFile and others if it is torn."""
    archive = zipfile.ZipFile(_Careful(file, 200 * most))
    if len(archive.infolist()) > most:
        raise ValueError(f"it holds more than {most:,} files")
    return archive


class _Careful(io.BufferedReader):
    """A file of which no more than ``most`` bytes can be read at once: zipfile reads as long a list as a header says."""

    def __init__(self, file: io.BufferedReader, most: int):
        super().__init__(file.raw)
        self.file = file  # which would close the raw one with itself
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(self.most + 1 if size is None or size < 0 else min(size, self.most + 1))
        if len(content) > self.most:
            raise ValueError(f"it holds too many files: a list of more than {self.most:,} bytes")
        return content
