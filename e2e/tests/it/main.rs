//! KohakuRiver from outside, as people and accidents meet it.

#![expect(clippy::unwrap_used, reason = "a test that is surprised should end there")]

mod accounts;
mod attacks;
mod bad_input;
mod containment;
mod disks;
mod faults;
mod files;
mod first_vps;
mod forward;
mod images;
mod lifecycle;
mod nodes;
mod people;
mod ssh_features;
mod terminal;
mod tls;
mod two_nodes;
mod vms;
mod websocket;
