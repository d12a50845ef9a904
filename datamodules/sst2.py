"""The Stanford Sentiment Treebank, two classes (Socher et al. 2013, as in GLUE)."""

from datamodules.hub import HubDataModule


class SST2(HubDataModule):
    """Is a phrase of a film review positive? Evaluated on validation: the labels of test are not published."""

    name = "sst2"
    path = "stanfordnlp/sst2"
    text_columns = ("sentence",)
    label_names = ("negative", "positive")
    eval_split_name = "validation"
