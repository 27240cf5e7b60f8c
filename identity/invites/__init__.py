"""Invitations: kept for people who are not on Matrix yet, and mailed to them."""
