"""Small networks for tables and small pictures."""
