"""The curve of a range test, and what it says."""
