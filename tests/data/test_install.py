"""torchvision, imported whatever it was built for."""

import subprocess
import sys


def test_torchvision_imports_beside_a_torch_without_its_operators():
    program = "from mnist_exp.vision import import_torchvision as i; print(i('torchvision.transforms.v2').__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "torchvision.transforms.v2", done.stderr
