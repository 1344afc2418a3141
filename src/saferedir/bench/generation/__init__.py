"""Generation: models, guards and judges of a plan, loaded where they are needed, and the images of one shard, scored."""
