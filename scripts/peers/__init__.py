"""Usual ways to train on MNIST, written from their descriptions, to be measured beside this package's own."""
