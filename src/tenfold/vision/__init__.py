"""DINOv2 and DINOv3: self-supervised vision on the shared block and trainer."""
