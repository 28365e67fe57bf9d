"""Raw shards to a data set: what each sample goes through, and how that is spread over a cluster."""
