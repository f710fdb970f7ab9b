"""Model types: how they describe themselves (`interface`), and those that come with swamp (`built_in`)."""
