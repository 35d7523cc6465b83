"""What a run promises about its data, what each round costs, and the ledger of what was paid."""
