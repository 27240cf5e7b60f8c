"""The v1 API: removed from the specification, and still called."""
