"""Raw data with unlabelled scans, integrity, splits, and the streams of batches."""
