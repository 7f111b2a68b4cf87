"""Batches: where they come from, in which order, what is in them, and how they reach the device."""
