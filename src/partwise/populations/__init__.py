"""Who the clients are: partitions, profiles, availability."""
