"""Replication to and from Sydent: its protocol, over mutual TLS."""
