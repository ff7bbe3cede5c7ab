"""Speed, side by side; nothing here is a test."""
