"""The formats of raw shards that people have: one module for each, which lists its shards and reads their rows."""
