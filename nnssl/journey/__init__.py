"""The road from a user's own files to a model and an answer, in steps of the ordinary commands."""
