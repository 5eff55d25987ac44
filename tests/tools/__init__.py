"""The programs of defocus_commands/ and of tools/, by their command lines."""
