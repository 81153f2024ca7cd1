"""Process groups and the attention that spans them."""
