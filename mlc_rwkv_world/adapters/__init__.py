"""This package's models in programs of others; each module needs the program that it is for."""
