"""From teacher to student: any finished run as a network, its targets on the student's grid, and the config."""
