//! The host from outside: its API, its link and its gateway, with a runner made of words.

mod gateway;
mod instances;
mod nodes;
mod openapi;
