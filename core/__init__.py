"""Values and their files: standard library and numpy only."""
