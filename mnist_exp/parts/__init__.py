"""What conf/ names: networks, transforms, optimizers, schedules, trainer, evaluation, loggers."""
