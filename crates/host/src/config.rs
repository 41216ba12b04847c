//! The host's configuration.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_store::{AuditLimits, EventLimits};

use crate::accounts::AuthConfig;
use crate::https::HttpsMode;

/// The host's settings; the executable fills them in from flags.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The directory of the database, the CA and the gateway's key. One host per directory.
    pub data_dir: PathBuf,
    /// Where API and gateway listen. The caller decides whether anything but loopback is allowed.
    pub bind: IpAddr,
    pub port: u16,
    pub ssh_port: u16,
    /// Names of this computer by which programs and pages may address the API.
    pub names: Vec<String>,
    /// Whether and how API and pages are served by TLS.
    pub https: HttpsMode,
    /// Proxies whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Where runners connect. It uses mutual TLS, so it may listen on every address.
    pub link_bind: IpAddr,
    pub link_port: u16,
    /// The address in join tokens, which runners connect to.
    pub link_address: HostAddress,
    /// How long a silent node's instances keep their last status before they are `lost`.
    pub lost_after: Duration,
    pub auth: AuthConfig,
    pub history: History,
    pub deadlines: Deadlines,
}

/// How much history the database retains.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    pub audit: AuditLimits,
    pub events: EventLimits,
}

/// Deadlines for peers that have not logged in or that stall a request.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From accepting the SSH connection to the end of its login, if the client has offered no key
    /// of an account.
    pub ssh_login: Duration,
    /// The same if it has: its user may be typing the key's passphrase.
    pub ssh_passphrase: Duration,
    /// From the connection, or the last response, to the end of a request's head.
    pub request_head: Duration,
    /// For receiving a request's body, where the host reads it whole; elsewhere, for its next
    /// chunk.
    pub request_body: Duration,
    /// How long a client may receive nothing of a response.
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
