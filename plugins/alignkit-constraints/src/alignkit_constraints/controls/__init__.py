"""Controls: what is done while a finished model is asked."""
