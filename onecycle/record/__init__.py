"""What was measured: the history of a learner, metrics, smoothed curves, predictions."""
