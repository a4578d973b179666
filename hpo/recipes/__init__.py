"""The recipes that come with hpo; only `hpo.training.registry` names them."""
