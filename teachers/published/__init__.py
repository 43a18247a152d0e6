"""A published model of SAM's kind as it is: nothing is trained, nothing added."""
