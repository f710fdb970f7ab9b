"""Questions about records: one CEL dialect, what of it a store can answer by itself, and the runner that
joins the two."""
