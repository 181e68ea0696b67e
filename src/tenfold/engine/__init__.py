"""The one training engine: trainer, checkpoints, schedules, optimizers, executor, reports."""
