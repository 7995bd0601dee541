"""A report as one HTML file: for reading, mailing and printing; it needs neither a network nor this package."""
