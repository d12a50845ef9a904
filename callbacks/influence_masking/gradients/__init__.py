"""What one gradient is taken over, and how."""
