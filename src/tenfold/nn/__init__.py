"""Blocks: torch alone, no files. A process group is used only when one is handed in."""
