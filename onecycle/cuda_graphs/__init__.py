"""Batches and optimizer steps as CUDA graphs. Experimental: no GPU has run them yet."""
