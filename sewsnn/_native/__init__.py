"""The compiled library lies in this folder."""
