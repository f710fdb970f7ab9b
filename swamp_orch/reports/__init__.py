"""Reports: what happened, as Markdown for people and JSON for programs. Pure functions of a run document."""
