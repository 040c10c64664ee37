"""A run, from its components to its results."""
