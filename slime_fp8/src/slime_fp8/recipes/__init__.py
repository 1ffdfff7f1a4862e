"""The precision recipes, one file each."""
