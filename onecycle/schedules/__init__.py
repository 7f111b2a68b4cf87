"""Pure functions of the position in a fit: 0 at its first update, 1 at its last. No torch."""
