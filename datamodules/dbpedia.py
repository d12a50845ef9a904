"""DBpedia, fourteen kinds of things (Zhang, Zhao and LeCun 2015)."""

from datamodules.hub import HubDataModule


class DBpedia(HubDataModule):
    """What kind of thing is an encyclopedia article about? The text is its title, a colon, and its abstract."""

    name = "dbpedia"
    path = "fancyzhx/dbpedia_14"
    text_columns = ("title", "content")
    label_names = (
        "Company",
        "EducationalInstitution",
        "Artist",
        "Athlete",
        "OfficeHolder",
        "MeanOfTransportation",
        "Building",
        "NaturalPlace",
        "Village",
        "Animal",
        "Plant",
        "Album",
        "Film",
        "WrittenWork",
    )
    eval_split_name = "test"
