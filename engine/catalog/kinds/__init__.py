"""What belongs to one kind of spec alone, a module each: its strategies, and what keeps its specs from running."""
