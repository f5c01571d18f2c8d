"""Which masks to trust, which scans to label next, and corrected masks on their way back into the data set."""
