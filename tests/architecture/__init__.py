"""The rules of the project, as tests. `rules` states each limit and allow-list once."""
