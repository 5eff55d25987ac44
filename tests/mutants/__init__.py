"""Faults that tests must notice, a file for each part of the house, and the program that makes them."""
