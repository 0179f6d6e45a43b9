"""The kill storm of the log: what its rounds do, and what must be true after each."""
