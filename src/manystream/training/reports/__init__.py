"""What a run writes for people: history, logs, plots and the HTML page."""
