"""Layers that know neither images' tasks nor frameworks."""
