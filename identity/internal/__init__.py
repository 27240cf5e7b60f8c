"""Bind and unbind for the operator's own programs, on a listener of their own."""
