//! A VPS with OpenSSH's own server in it, beside our agent.

use std::path::PathBuf;

use kohakuriver_e2e::{DEBIAN, Server, Site, Sshd};

/// Dropping it stops and removes everything.
pub struct Beside {
    pub site: Site,
    _server: Server,
    /// Opens both servers.
    pub key: PathBuf,
    pub sshd: Sshd,
}

impl Beside {
    /// The VPS is called `web`.
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
