"""One update: how an optimizer is made, what its groups are, and how it steps."""
