"""Tests by the folder of what they test; beside those what runs the frameworks' own tools, and what tests share."""
