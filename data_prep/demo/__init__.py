"""The demo's problems and model, made on the spot."""
