"""What a file is and holds, and what this machine can run."""
