"""Validation sessions: someone proves that an address is theirs by a token sent to it."""
