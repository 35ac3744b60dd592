"""Closed forms (placeholder until the next commit)."""
