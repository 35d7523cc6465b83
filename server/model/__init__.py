"""The tuned model: saved, and asked."""
