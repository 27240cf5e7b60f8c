"""Taking over the database of a Sydent, so that its peers and users notice nothing."""
