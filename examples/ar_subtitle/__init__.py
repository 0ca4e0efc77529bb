"""AR subtitles: text seen by a camera is found, read, translated and written over the picture."""
