"""Decoding: engine, scheduler, requests, KV and prefix cache, grammars, asynchronous steps."""
