"""Turns raw shards into a data set: the steps for each sample, and how they run on a cluster."""
