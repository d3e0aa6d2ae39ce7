"""Prepares documents as token files and reads them row by row."""
