"""What verl loads by name, in its own processes."""
