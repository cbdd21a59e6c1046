"""timm, open_clip and the packaged demo models behind one Backbone."""
