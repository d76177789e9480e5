"""Where samples come from: folders, public data sets, manifests, rendered scenes."""
