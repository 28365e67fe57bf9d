"""Lists of image URLs with captions, read in any of the formats they are published in."""
