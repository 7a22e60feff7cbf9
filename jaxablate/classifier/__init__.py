"""Text classifiers with SAFR: their measures, and the public names of everything that is about them."""
