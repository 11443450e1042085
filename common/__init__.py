"""What all packages share: command-line ends, files, locks and processes, the machine."""
