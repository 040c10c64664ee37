"""``python -m mnist_exp``."""

from mnist_exp.cli.main import main

main()
