"""samkd reproduce: a table of a paper, row by row: plan, missing runs, and the numbers side by side."""
