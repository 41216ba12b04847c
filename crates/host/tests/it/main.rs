//! The host from outside: its API, its link and its gateway, with a fake runner.

#![expect(clippy::unwrap_used, reason = "a test that is surprised should end there")]

mod accounts;
mod approval;
mod audit;
mod consent;
mod derived;
mod files;
mod foreign_clients;
mod gateway;
mod hostile;
mod instances;
mod lifecycle;
mod machines;
mod matrix;
mod nodes;
mod oidc;
mod openapi;
mod openapi_file;
mod poison;
mod revocation;
mod ssh_identity;
mod terminal;
mod tls;
mod unconfined;
