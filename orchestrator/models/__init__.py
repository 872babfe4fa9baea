"""Built-in architectures, the user's own factories, and the scaling around them."""
