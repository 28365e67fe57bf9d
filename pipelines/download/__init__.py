"""Downloads the images of URL lists into raw shards."""
