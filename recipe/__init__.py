"""What makes a run JustRL: configs, their check, the entry that hands over to verl, the CPU platform."""
