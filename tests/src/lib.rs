//! The whole server from outside: see the folder `tests` beside this one.
