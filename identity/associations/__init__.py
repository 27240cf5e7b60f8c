"""Associations of 3PIDs with MXIDs: signed statements, their log, and the current view."""
