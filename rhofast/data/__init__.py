"""How shards become views, in reading order: types, index, codecs, order, clips, augment, reader, pipeline, loader."""
