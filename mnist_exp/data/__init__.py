"""Data sets: found, verified, split, installed."""
