"""Serving over HTTP: what every wing's server stands on."""
