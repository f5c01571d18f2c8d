"""Models as one file: exported without pickle or code, checked and installed as a whole."""
