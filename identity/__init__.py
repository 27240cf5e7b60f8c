"""A Matrix identity server."""
