"""Expressions `${{ … }}` in definition files.

A text from a definition file becomes a `Template` once (`template.py`); only templates are evaluated
(`evaluate.py`), against a `Scope` (`scope.py`). What comes out are values, and values are never parsed:
nothing here turns a value back into a template. Secrets leave evaluation as `Secret` (`secret.py`), still
unread.
"""
