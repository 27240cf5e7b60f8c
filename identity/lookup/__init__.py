"""Hashed lookups: hashes and peppers, the keyed index, `hash_details` and `lookup`."""
