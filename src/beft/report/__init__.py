"""Pictures, tables and pages made of results. A leaf: it imports nothing of ours but words and errors."""
