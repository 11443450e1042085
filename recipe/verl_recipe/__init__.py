"""This recipe as a folder of github.com/verl-project/verl-recipe."""
