"""The server's own keys: their files, what the database knows of them, and `pubkey/*`."""
