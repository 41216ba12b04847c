//! Which keys and certificates may log in.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use kohakuriver_model::UserId;
use russh::keys::ssh_key::Certificate;
use russh::keys::{Algorithm, PublicKey};

use super::certificate;
use crate::config::AgentConfig;
use crate::passwd::{self, User};

/// sshd has no limit, but a login must not read a disk image.
const MAX_KEYS_FILE: u64 = 256 * 1024;

/// The credential that admitted a login, for checks of later revocation.
#[derive(Debug)]
pub(super) enum Entry {
    /// A key that the settings have.
    Key(PublicKey),
    /// A certificate of this account's.
    Certificate(Option<UserId>),
    /// A key of the user's own file, which any process of the user can write.
    Own,
}

/// Finds the user, if it exists and this key may log in as it.
pub(super) fn authorize(
    config_dir: &Path,
    name: &str,
    key: &PublicKey,
    algorithm: &Algorithm,
) -> Option<(User, Entry)> {
    if is_forgeable(algorithm) {
        return None;
    }
    let user = passwd::lookup(name)?;
    if injected(config_dir).iter().any(|line| line_allows(line, key)) {
        return Some((user, Entry::Key(key.clone())));
    }
    let own = own_keys(&user)?;
    own.lines().any(|line| line_allows(line, key)).then_some((user, Entry::Own))
}

/// Returns whether the credential is still accepted. Unreadable settings revoke nothing.
pub(super) fn still_admits(config_dir: &Path, entry: &Entry) -> bool {
    let Ok(config) = AgentConfig::read(config_dir) else { return true };
    let lines = &config.authorized_keys;
    match entry {
        Entry::Key(key) => lines.iter().any(|line| line_allows(line, key)),
        // It has had its time; whose it is is what counts.
        Entry::Certificate(holder) => {
            certificate::trusted_ca(lines).is_some()
                && certificate::may_enter(certificate::people(lines).as_ref(), *holder)
        }
        Entry::Own => true,
    }
}

/// Finds the user, if it exists and this certificate may log in as it.
pub(super) fn authorize_certificate(
    config_dir: &Path,
    name: &str,
    certificate: &Certificate,
) -> Option<(User, Entry)> {
    let lines = injected(config_dir);
    let (ca, people) = (certificate::trusted_ca(&lines), certificate::people(&lines));
    match certificate::judge(ca.as_ref(), people.as_ref(), certificate, SystemTime::now()) {
        Ok(()) => {
            let entry = Entry::Certificate(certificate::holder(certificate));
            passwd::lookup(name).map(|user| (user, entry))
        }
        Err(refusal) => {
            tracing::info!(user = name, key_id = ?certificate.key_id(), %refusal, "certificate refused");
            None
        }
    }
}

/// SHA-1 signatures can be forged; every client since 2016 has rsa-sha2.
pub(super) fn is_forgeable(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None })
}

/// Returns the authorized keys of the current settings.
fn injected(config_dir: &Path) -> Vec<String> {
    match AgentConfig::read(config_dir) {
        Ok(config) => config.authorized_keys,
        Err(error) => {
            tracing::warn!(%error, "injected keys cannot be read");
            Vec::new()
        }
    }
}

/// Whether the line is exactly a key, and this one.
///
/// A line with options restricts its key in ways that are not honored here, so it is ignored.
fn line_allows(line: &str, key: &PublicKey) -> bool {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return false;
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(algorithm), Some(_)) = (words.next(), words.next()) else {
        return false;
    };
    if Algorithm::new(algorithm).is_err() {
        return false;
    }
    PublicKey::from_openssh(line).is_ok_and(|listed| listed.key_data() == key.key_data())
}

/// Returns the user's own authorized_keys, if no other user could have written it.
fn own_keys(user: &User) -> Option<String> {
    let directory = user.home.join(".ssh");
    let trusted = |meta: &std::fs::Metadata| {
        (meta.uid() == user.uid || meta.uid() == 0) && meta.mode() & 0o022 == 0
    };
    if !trusted(&std::fs::metadata(&directory).ok()?) {
        return None;
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        // A FIFO in its place must not hang the login.
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(directory.join("authorized_keys"))
        .ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || !trusted(&meta) {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_KEYS_FILE).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const OTHER: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";

    fn key() -> PublicKey {
        PublicKey::from_openssh(KEY).unwrap()
    }

    #[test]
    fn a_plain_line_admits_its_key_whatever_the_comment_and_nothing_else() {
        assert!(line_allows(KEY, &key()));
        assert!(line_allows(&format!("  {KEY} a comment # with more\r"), &key()));
        assert!(!line_allows(OTHER, &key()));
        assert!(!line_allows("", &key()));
        assert!(!line_allows(&format!("# {KEY}"), &key()));
    }

    #[test]
    fn a_line_with_options_admits_nobody() {
        for options in [
            "no-pty",
            "cert-authority,principals=\"vps-7\"",
            "command=\"/bin/true\"",
            "from=\"10.0.0.1\",no-pty",
        ] {
            assert!(!line_allows(&format!("{options} {KEY}"), &key()), "{options}");
        }
    }

    #[test]
    fn own_keys_count_only_where_nobody_else_can_write_them() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        std::fs::create_dir(&ssh).unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&ssh, 0o700);
        let file = ssh.join("authorized_keys");
        std::fs::write(&file, KEY).unwrap();
        mode(&file, 0o600);
        let user = User {
            name: "me".into(),
            uid: nix::unistd::getuid().as_raw(),
            gid: 0,
            home: home.path().to_owned(),
            shell: String::new(),
            groups: vec![],
        };
        assert!(own_keys(&user).is_some());
        mode(&file, 0o620);
        assert!(own_keys(&user).is_none());
        mode(&file, 0o600);
        mode(&ssh, 0o777);
        assert!(own_keys(&user).is_none());
    }
}
