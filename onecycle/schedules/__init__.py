"""Schedules: pure functions of the position in a fit, from 0 at its first update to 1 at its last."""
