"""Accounts and access tokens: who is calling."""
