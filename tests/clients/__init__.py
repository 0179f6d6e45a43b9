"""Other people's code, unchanged, over a store: what takes a dict, a dbm, or a mapping that it can pickle."""
