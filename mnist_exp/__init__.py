"""Compose a training run from small named parts, train it, and believe the answer."""
