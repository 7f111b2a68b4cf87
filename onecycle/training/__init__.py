"""What one does with a loop: fit, find a rate, validate, predict, freeze, land, look."""
