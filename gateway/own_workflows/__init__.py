"""Workflows that callers bring: read, checked, and from then on tools like any other."""
