"""Tests mirror the packages; real components, no stand-ins."""
