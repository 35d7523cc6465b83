"""The coordinator: plans, accounts, receives, evaluates, reports."""
