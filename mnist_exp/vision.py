"""torchvision, imported whatever torch it was built for."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def import_torchvision(name: str = "torchvision") -> ModuleType:
    """Return the module ``name`` of torchvision.

    A mismatched build stops at ``operator torchvision::nms does not exist``. Data sets and transforms need none of
    those operators, so, after exactly that error, declare the two that are looked up at import and try again.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    import torch

    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_torchvision.library = library  # type: ignore[attr-defined]  # the schemas live as long as this object
    return importlib.import_module(name)
