"""Look at runs and data without changing them."""
