"""Model adapters: one call to denoise, whatever the family."""
