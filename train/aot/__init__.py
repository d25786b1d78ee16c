"""Programs compiled for real TPUs with none present: what they need, what they move, what they would take."""
