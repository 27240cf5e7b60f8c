"""Telling a homeserver that a 3PID of its user was bound, with the invitations that waited."""
