"""Tuning of draft trees: search, costs, measurements, pictures."""
