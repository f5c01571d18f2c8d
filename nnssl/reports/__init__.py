"""Reports that open in a browser, and pictures of scans with their masks."""
