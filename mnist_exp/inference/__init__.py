"""From a finished run to an answer: load, score, predict, export, draw."""
