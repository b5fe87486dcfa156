"""Programs that filters ask over their stdin and stdout, started outside the filter's sandbox."""
