"""The networks, and what happens to a slice before the first of them."""
