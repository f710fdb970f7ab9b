"""Everything needed to decide and remember: repository, store, queries, vaults, workflows, scheduler, gateway, CLI."""
