"""Tokenizing data sets: an index of the images, shards of tokens, resume; on one machine or on Ray."""
