"""Tasks: a pretrained model, the data to adapt it to, and the data to judge it on."""
