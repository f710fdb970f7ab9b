"""Running one dispatch: processes, their output, the keeper that outlives us, and what is reported at the
end.
"""
