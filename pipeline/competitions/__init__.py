"""One YAML a competition, and one reader a layout of raw files; listing.py says what a reader is."""
