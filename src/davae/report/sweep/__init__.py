"""What came out of a sweep: a table with spreads, for pages, terminals and machines; and the page."""
