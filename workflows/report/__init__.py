"""samkd report: teacher, control, student and packages side by side in one HTML file."""
