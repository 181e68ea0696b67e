"""Serving: OpenAI-compatible routes, the service behind them, disaggregated prefill."""
