"""Structurally smaller students: fewer layers, heads, channels, ranks or tokens, repaired in closed form."""
