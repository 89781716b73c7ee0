"""The playground: laws so simple that every answer is known."""
