"""What the converters share: records, sources, checks, case files and the writer."""
