"""The command line: one module a verb, and what verbs share."""
