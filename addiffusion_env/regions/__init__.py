"""Where to refine: phrases, maps and masks."""
