"""Distillation of drafters: rollouts of the target, losses, training-time test, replay."""
