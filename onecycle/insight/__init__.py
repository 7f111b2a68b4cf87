"""Looking at data and at what a model makes of it: batches, results, losses, confusions."""
