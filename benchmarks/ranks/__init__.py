"""Steps over ranks that share the keys of each request, against one GPU that has all keys."""
