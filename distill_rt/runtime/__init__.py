"""From an engine and a request to pixels; no torch."""
