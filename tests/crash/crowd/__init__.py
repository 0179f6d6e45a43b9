"""Several writers of one store, of which some are killed while the others go on."""
