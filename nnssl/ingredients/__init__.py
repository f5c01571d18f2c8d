"""Pure tensor functions on `(B, C, *S)`, from the papers' formulas."""
