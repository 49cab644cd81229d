"""Video DiTs of the paper, written anew from their published architecture."""
