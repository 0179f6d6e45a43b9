"""Crash images of small logs: what a power cut may leave of them, page by page, and what must be true."""
