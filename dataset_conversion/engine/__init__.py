"""The machinery of all converters: records, sources, checks, case files and the writer."""
