"""What a served ensemble tells of itself: figures, log lines, spans. Nothing here changes an answer."""
