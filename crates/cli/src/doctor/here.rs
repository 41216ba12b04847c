//! Checks of this machine: the user's files, required programs, and requirements of a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::data::is_node;
use super::finding::{Finding, State};
use crate::context::Context;
use crate::credentials;
use crate::files;

const DOCKER: &str = "/var/run/docker.sock";
const KVM: &str = "/dev/kvm";

pub fn inspect(context: &Context, data: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(folder) = &context.settings.folder {
        findings.push(config(folder));
    }
    if let Ok(home) = files::home() {
        findings.push(ssh_keys(&home.join(".ssh")));
    }
    findings.push(match in_path("ssh") {
        Some(path) => Finding::ok("ssh", path.display().to_string()),
        None => Finding::warn(
            "ssh",
            "OpenSSH's client is not installed",
            "`kohakuriver ssh` needs it, `kohakuriver connect` does not: apt-get install openssh-client",
        ),
    });
    let needed = is_node(data);
    findings.push(docker(needed));
    findings.push(kvm(needed));
    findings
}

/// Checks the directory of settings, pinned CAs and tokens: secrets readable by others are lost.
fn config(folder: &Path) -> Finding {
    let Ok(kept) = fs::metadata(folder) else {
        return Finding::ok("configuration", format!("none yet ({})", folder.display()));
    };
    let mode = kept.permissions().mode() & 0o777;
    let shown = folder.display();
    if mode & 0o022 != 0 {
        return Finding::bad(
            "configuration",
            format!("others can change {shown} (mode {mode:03o})"),
            format!("chmod 700 {shown}"),
        );
    }
    let secrets = credentials::path(folder);
    if let Some(mode) = open_to_others(&secrets) {
        return Finding::bad(
            "configuration",
            format!("others can read {} (mode {mode:03o})", secrets.display()),
            format!("chmod 600 {}; if they did, log out and in again", secrets.display()),
        );
    }
    Finding::ok("configuration", format!("{shown} is safe from others"))
}

fn ssh_keys(folder: &Path) -> Finding {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let open: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("id") && !name.ends_with(".pub")
        })
        .filter(|path| open_to_others(path).is_some())
        .collect();
    match open.first() {
        None => Finding::ok("ssh keys", "no private key is open to others"),
        Some(path) => Finding::bad(
            "ssh keys",
            format!("others can read {}; ssh refuses it", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
    }
}

/// Returns the mode of a file that other users can read or write.
pub fn open_to_others(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

fn docker(needed: bool) -> Finding {
    let socket = std::env::var("DOCKER_HOST")
        .ok()
        .and_then(|host| host.strip_prefix("unix://").map(ToOwned::to_owned))
        .unwrap_or_else(|| DOCKER.to_owned());
    match UnixStream::connect(&socket) {
        Ok(_) => Finding::ok("docker", format!("an engine answers at {socket}")),
        Err(error) if needed => Finding::bad(
            "docker",
            format!("{socket}: {error}"),
            "start the engine (systemctl start docker): this machine is a node, and containers need it",
        ),
        Err(_) => Finding::ok("docker", "none here; only nodes need it"),
    }
}

fn kvm(needed: bool) -> Finding {
    match fs::OpenOptions::new().read(true).write(true).open(KVM) {
        // Opening it proves nothing: there are machines where guests hang under it.
        Ok(_) => Finding::ok(
            "kvm",
            format!("{KVM} can be opened; `kohakuriver qemu check` tries a guest under it"),
        ),
        Err(error) if needed => Finding {
            state: State::Warn,
            check: "kvm",
            found: format!("{KVM}: {error}: virtual machines are emulated, some ten times slower"),
            advice: Some("`kohakuriver qemu check` says why".to_owned()),
        },
        Err(_) => Finding::ok("kvm", "none here; only nodes need it"),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_can_read_or_change_is_bad() {
        let folder = tempfile::tempdir().unwrap();
        set(folder.path(), 0o700);
        assert_eq!(config(&folder.path().join("absent")).state, State::Ok);
        assert_eq!(config(folder.path()).state, State::Ok);
        let secrets = credentials::path(folder.path());
        fs::write(&secrets, "").unwrap();
        set(&secrets, 0o640);
        let found = config(folder.path());
        assert_eq!(found.state, State::Bad);
        assert!(found.advice.unwrap().starts_with("chmod 600 "));
        set(&secrets, 0o600);
        assert_eq!(config(folder.path()).state, State::Ok);
        set(folder.path(), 0o770);
        assert_eq!(config(folder.path()).state, State::Bad);
    }

    #[test]
    fn private_key_readable_by_others_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("id-kohakuriver-7");
        fs::write(&key, "").unwrap();
        fs::write(folder.path().join("id_ed25519.pub"), "").unwrap();
        set(&key, 0o644);
        let found = ssh_keys(folder.path());
        assert!(found.state == State::Bad && found.found.contains("id-kohakuriver-7"));
        set(&key, 0o600);
        assert_eq!(ssh_keys(folder.path()).state, State::Ok);
    }
}
