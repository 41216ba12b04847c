//! What the host is told at its start.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_store::{AuditLimits, EventLimits};

use crate::accounts::AuthConfig;
use crate::https::HttpsMode;

/// The host's settings; the executable fills them from flags.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Holds the database, the CA and the gateway's key. One host per directory.
    pub data_dir: PathBuf,
    /// Where API and gateway listen. Anything but loopback is the caller's to have allowed.
    pub bind: IpAddr,
    pub port: u16,
    pub ssh_port: u16,
    /// Names of this machine under which programs and pages may reach the API.
    pub names: Vec<String>,
    /// Whether and how API and pages are served by TLS.
    pub https: HttpsMode,
    /// Whose word on where a request came from is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where runners dial in. Mutual TLS, so it may listen everywhere.
    pub link_bind: IpAddr,
    pub link_port: u16,
    /// What join tokens tell runners to dial.
    pub link_address: HostAddress,
    /// How long a silent node's instances keep their last status before they are `lost`.
    pub lost_after: Duration,
    pub auth: AuthConfig,
    pub history: History,
    pub deadlines: Deadlines,
}

/// How much history the database keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    pub audit: AuditLimits,
    pub events: EventLimits,
}

/// Deadlines for peers that have not logged in or that stall a request.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the SSH connection to the end of its login, where the client has shown no key of an
    /// account.
    pub ssh_login: Duration,
    /// The same where it has: its user may be typing the key's passphrase.
    pub ssh_passphrase: Duration,
    /// From the connection, or the last response, to the end of a request's head.
    pub request_head: Duration,
    /// Until a request's body is there, where the host reads it whole; elsewhere until its next
    /// piece.
    pub request_body: Duration,
    /// How long a client may take nothing of a response.
    pub response: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            ssh_login: Duration::from_secs(30),
            ssh_passphrase: Duration::from_secs(120),
            request_head: Duration::from_secs(10),
            request_body: Duration::from_secs(20),
            response: Duration::from_secs(120),
        }
    }
}
