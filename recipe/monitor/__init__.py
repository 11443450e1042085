"""Watching and reporting a run: metrics, health rules, the published curves, compute."""
