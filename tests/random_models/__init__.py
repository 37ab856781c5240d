"""Models that nobody prepared for us: generated ones, and ones as researchers write them."""
