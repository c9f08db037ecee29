"""`davae generate`: images from prompts, as pictures or as captioned shards."""
