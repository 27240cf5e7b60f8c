"""What makes the statements of one server comparable with a copy of them on another."""
