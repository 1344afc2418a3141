"""What a report says: numbers, tables, ranking and sentences, before any page exists."""
