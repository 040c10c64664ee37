"""``python -m mnist_exp``."""

from mnist_exp.cli.main import main

if __name__ == "__main__":
    main()
