"""`quantformer reproduce`: which runs a table needs (`plan`), making them (`execute`), and what they say (`tables`, `pages`)."""
