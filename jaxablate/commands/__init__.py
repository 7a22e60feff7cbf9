"""The commands of the program `jaxablate`: one file each, with its settings and its run."""
