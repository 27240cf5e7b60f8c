"""Calls to homeservers: finding them, reaching them safely, asking them things."""
