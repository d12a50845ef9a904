"""Yelp reviews, five classes (Zhang, Zhao and LeCun 2015)."""

from datamodules.hub import HubDataModule


class YelpReviewFull(HubDataModule):
    """How many stars did the writer of a review give?"""

    name = "yelp"
    path = "Yelp/yelp_review_full"
    label_names = ("1 star", "2 star", "3 stars", "4 stars", "5 stars")  # as the dataset spells them
    eval_split_name = "test"
