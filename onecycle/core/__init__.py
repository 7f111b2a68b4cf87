"""The loop and its contract: events, callbacks, state, and putting everything back."""
