"""URL lists to raw shards."""
