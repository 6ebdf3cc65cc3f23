"""What PEFT Lab keeps: runs, their metrics and samples, and the queue. Imports nothing else of the project."""
