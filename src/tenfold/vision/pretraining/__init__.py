"""Self-supervised pretraining and distillation of DINOv2 and DINOv3."""
