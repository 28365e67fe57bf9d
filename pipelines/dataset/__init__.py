"""Contracts on disk, of raw shards and of data sets, and how to look at them."""
