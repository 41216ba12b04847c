//! A VPS that runs OpenSSH's server beside the agent.

use std::path::PathBuf;

use kohakuriver_e2e::{DEBIAN, Server, Site, Sshd};

/// A VPS with two SSH servers. Dropping it stops and removes everything.
pub struct Beside {
    pub site: Site,
    _server: Server,
    /// The key that both servers accept.
    pub key: PathBuf,
    pub sshd: Sshd,
}

impl Beside {
    /// Starts the VPS, which is called `web`.
    pub fn start() -> Self {
        let mut site = Site::new();
        let server = site.up();
        let key = site.make_key("bench");
        let public = format!("{}.pub", key.display());
        let create = ["vps", "create", "--name", "web", "--image", DEBIAN];
        site.kr(&[&create[..], &["--public-key-file", &public]].concat()).ok();
        let sshd = Sshd::start_in(&site.containers()[0], &key);
        Self { site, _server: server, key, sshd }
    }
}
