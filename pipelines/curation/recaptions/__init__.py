"""Other captions for the images, e.g. of a model: their files, the join with the samples, and the look before it."""
