"""AG News, four topics (Zhang, Zhao and LeCun 2015)."""

from datamodules.hub import HubDataModule


class AGNews(HubDataModule):
    """What is a news item, given by its title and description, about?"""

    name = "agnews"
    path = "fancyzhx/ag_news"
    label_names = ("World", "Sports", "Business", "Sci/Tech")
    eval_split_name = "test"
