"""Checkpoints on a disk that is not to be trusted."""

import numpy as np
import pytest
import torch

from mnist_exp.errors import UserError
from mnist_exp.training.checkpoints import load, save


def test_no_damage_changes_a_weight_silently(tmp_path):
    torch.manual_seed(0)
    weights = {f"layer{n}": torch.randn(40, 60) for n in range(8)}
    save(tmp_path / "whole.pth", {"model": weights, "epoch": 3})
    content = (tmp_path / "whole.pth").read_bytes()
    draws, path, noticed = np.random.default_rng(0), tmp_path / "damaged.pth", []
    for case in range(300):
        at, size = int(draws.integers(0, len(content))), int(draws.choice([1, 16, 512, 4096]))
        block = bytes(size) if case % 2 else draws.bytes(size)
        path.write_bytes((content[:at] + block + content[at + size :])[: len(content)])
        try:
            state = load(path, weights)
        except UserError as error:
            noticed.append(str(error))
        else:  # what was hit is of no meaning, such as padding
            assert state["epoch"] == 3
            assert all(torch.equal(state["model"][name], weights[name]) for name in weights)
    assert len(noticed) > 150
    assert all("damaged.pth" in message for message in noticed)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nothing.pth", weights)
