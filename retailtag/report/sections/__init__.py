"""Sections of the page: each module gives the data of one, which its template writes out."""
