"""Studies: many runs from one command, their states in a small database, and the queue that trains them."""
