"""What a run left: files, records, statistics."""
