"""The on-disk contracts of raw shards and data sets, and how to inspect them."""
