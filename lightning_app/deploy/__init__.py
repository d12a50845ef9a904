"""A trained run used elsewhere: predict and export."""
