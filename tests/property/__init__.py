"""Randomised tests against simple models."""
