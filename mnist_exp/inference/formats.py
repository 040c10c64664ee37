"""The formats that a network is exported to: how each is written, read back, and used.

What the exporters note for debugging is left out: it names the folders of the machine. torch takes seconds to import, so each function does it itself.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_exp.inference.servable import Servable

    Predict = Callable[[Tensor], Tensor]  # uint8 images [N, 28, 28] to probabilities float32 [N, classes]


@dataclasses.dataclass(frozen=True)
class Format:
    """A format: the ``file`` that it makes, ``write`` (its bytes) and ``read`` (what the file in a folder predicts).

    ``title``, ``library`` (Hugging Face's name of it), ``installed`` (what pip installs to use the file) and ``code`` (which
    uses it, in its folder) are for the model card; ``packages`` are imported to write and to check it.
    """

    title: str
    file: str
    library: str
    installed: str
    packages: tuple[str, ...]
    write: Callable[[Servable, Tensor], bytes]
    read: Callable[[Path], Predict]
    code: str


def _write_onnx(servable: Servable, example: Tensor) -> bytes:
    import torch

    program = torch.onnx.export(
        servable,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None  # as always with dynamo
    model = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
    content: bytes = model.SerializeToString()
    return content


def _read_onnx(file: Path) -> Predict:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_torchscript(servable: Servable, example: Tensor) -> bytes:
    import torch

    content = io.BytesIO()
    # traced, as scripting does not take the networks as they are written; that any batch goes through is checked after
    torch.jit.save(torch.jit.trace(servable, (example,), check_trace=False), content)
    plain = io.BytesIO()
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(plain, "w") as kept:
        for part in archive.infolist():
            if not part.filename.endswith(".debug_pkl"):
                kept.writestr(part.filename, archive.read(part))
    return plain.getvalue()


def _read_torchscript(file: Path) -> Predict:
    import torch

    loaded: Predict = torch.jit.load(str(file), map_location="cpu")
    return loaded


def _write_pt2(servable: Servable, example: Tensor) -> bytes:
    import torch

    content = io.BytesIO()
    program = torch.export.export(servable, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, content)
    return content.getvalue()


def _read_pt2(file: Path) -> Predict:
    import torch

    return torch.export.load(str(file)).module()


def _write_safetensors(servable: Servable, example: Tensor) -> bytes:
    from safetensors.torch import save

    # copies, as weights that a network uses twice cannot be said
    weights = {name: tensor.clone().contiguous() for name, tensor in servable.network.state_dict().items()}
    return save(weights, {"format": "pt"})


def _read_safetensors(file: Path) -> Predict:
    from mnist_exp.inference.servable import load_export

    return load_export(file.parent)


def _code(imports: str, load: str, images: str, predict: str) -> str:
    """Return a program that says which class the first of some images shows."""
    return f"""\
{imports}
{load}
images = {images}  # yours: [N, 28, 28], 0 to 255, light on dark
{predict}
print(json.load(open("config.json"))["classes"][probabilities[0].argmax()])
"""


def _torch_code(load: str, imports: str = "import json, torch") -> str:
    return _code(
        imports, f"model = {load}", "torch.zeros(1, 28, 28, dtype=torch.uint8)", "probabilities = model(images)"
    )


FORMATS = {
    "onnx": Format(
        title="ONNX",
        file="model.onnx",
        library="onnx",
        installed="numpy onnxruntime",
        packages=("onnx", "onnxscript", "onnxruntime"),
        write=_write_onnx,
        read=_read_onnx,
        code=_code(
            imports="import json, numpy, onnxruntime",
            load='session = onnxruntime.InferenceSession("model.onnx")',
            images="numpy.zeros((1, 28, 28), numpy.uint8)",
            predict='(probabilities,) = session.run(None, {"images": images})',
        ),
    ),
    "torchscript": Format(
        title="TorchScript",
        file="model.pt",
        library="pytorch",
        installed="torch",
        packages=(),
        write=_write_torchscript,
        read=_read_torchscript,
        code=_torch_code('torch.jit.load("model.pt")'),
    ),
    "pt2": Format(
        title="torch.export's PT2",
        file="model.pt2",
        library="pytorch",
        installed="torch",
        packages=(),
        write=_write_pt2,
        read=_read_pt2,
        code=_torch_code('torch.export.load("model.pt2").module()'),
    ),
    "safetensors": Format(
        title="safetensors",
        file="model.safetensors",
        library="mnist_exp",
        installed="'.[export]'  # in a checkout of mnist_exp",
        packages=("safetensors",),
        write=_write_safetensors,
        read=_read_safetensors,
        code=_torch_code('load_export(".")', "import json, torch\nfrom mnist_exp import load_export"),
    ),
}
