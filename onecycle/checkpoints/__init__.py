"""All that training changes, in memory and in files."""
