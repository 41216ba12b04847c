//! Files for the agent in an instance: its executable, its settings, its host key.
//!
//! The runner writes these and the container reads them; the container's own directory (`run/`)
//! is never written to from here.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kohakuriver_agent::{AgentConfig, CONFIG_FILE, GUEST_SECRET_FILE, HOST_KEY_FILE};
use kohakuriver_agent_protocol::GuestSecret;
use kohakuriver_model::{BackendKind, InstanceId, InstanceSpec, SshAccess};
use kohakuriver_runner_link::protocol::Order;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use sha2::{Digest, Sha256};

use crate::layout::{AGENT_NAME, Layout};
use kohakuriver_durable as durable;

/// Returns the hostname inside the instance.
pub fn hostname(spec: &InstanceSpec, id: InstanceId) -> String {
    match &spec.name {
        Some(name) => name.as_str().to_owned(),
        None => {
            let digits = id.to_string();
            format!("vps-{}", &digits[digits.len().saturating_sub(8)..])
        }
    }
}

/// Copies our own executable to where containers mount it, unless it is there already.
pub fn install_agent(layout: &Layout, executable: &Path) -> io::Result<()> {
    let dir = layout.agent_dir();
    durable::private_dir(&dir)?;
    // Any user inside an instance may have to run it (the agent starts shells through itself).
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let target = dir.join(AGENT_NAME);
    if same_content(executable, &target)? {
        return Ok(());
    }
    let temporary = dir.join(".kohakuriver.new");
    fs::copy(executable, &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, &target)?;
    durable::sync_dir(&dir)
}

/// Writes settings and, once in the instance's life, its host key.
pub fn write_instance_files(layout: &Layout, order: &Order) -> io::Result<()> {
    let id = order.task_id;
    let etc = layout.etc(id);
    durable::private_dir(&etc)?;
    durable::private_dir(&layout.run(id))?;
    fs::create_dir_all(layout.shared_data())?;
    let key = etc.join(HOST_KEY_FILE);
    if !key.exists() {
        let fresh =
            PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(io::Error::other)?;
        let text = fresh.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
        durable::write(&key, text.as_bytes(), 0o600)?;
    }
    durable::write(&etc.join(CONFIG_FILE), &settings(order)?, 0o600)
}

/// Brings the settings of an instance that has its files up to date; others get them when they are
/// made.
pub fn refresh_settings(layout: &Layout, order: &Order) -> io::Result<()> {
    let path = layout.etc(order.task_id).join(CONFIG_FILE);
    let new = settings(order)?;
    match fs::read(&path) {
        Ok(old) if old != new => durable::write(&path, &new, 0o600),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn settings(order: &Order) -> io::Result<Vec<u8>> {
    let spec = &order.spec;
    let config = AgentConfig {
        task_id: order.task_id.to_string(),
        hostname: hostname(spec, order.task_id),
        ssh: spec.ssh.is_some(),
        authorized_keys: spec.ssh.as_ref().map(SshAccess::lines).unwrap_or_default(),
        env: spec.env.clone(),
        // A guest has its own, which would not start where this was quicker.
        serve_port_22: spec.backend() == BackendKind::Docker,
    };
    serde_json::to_vec_pretty(&config).map_err(io::Error::other)
}

/// The name in the settings that were written last.
pub fn written_hostname(layout: &Layout, id: InstanceId) -> io::Result<String> {
    let text = fs::read(layout.etc(id).join(CONFIG_FILE))?;
    let config: AgentConfig = serde_json::from_slice(&text).map_err(io::Error::other)?;
    Ok(config.hostname)
}

/// Returns the secret shared with a guest's agent, created once in the instance's life.
pub fn guest_secret(layout: &Layout, id: InstanceId) -> io::Result<GuestSecret> {
    let path = layout.etc(id).join(GUEST_SECRET_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => text.parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = GuestSecret::random();
            durable::write(&path, secret.to_text().as_bytes(), 0o600)?;
            Ok(secret)
        }
        Err(error) => Err(error),
    }
}

/// The host key's public half as an OpenSSH line, `None` before the first create.
pub fn public_host_key(layout: &Layout, id: InstanceId) -> Option<String> {
    let text = fs::read_to_string(layout.etc(id).join(HOST_KEY_FILE)).ok()?;
    let key = PrivateKey::from_openssh(text).ok()?;
    key.public_key().to_openssh().ok()
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let length = match fs::metadata(other) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if fs::metadata(one)?.len() != length {
        return Ok(false);
    }
    Ok(digest(one)? == digest(other)?)
}

fn digest(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().to_vec()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use kohakuriver_model::Intent;

    use super::*;
    use crate::plan::tests::order;

    #[test]
    fn host_key_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), dir.path());
        let order = order(Intent::created());
        write_instance_files(&layout, &order).unwrap();
        let key = public_host_key(&layout, order.task_id).unwrap();
        assert!(key.starts_with("ssh-ed25519 AAAA"), "{key}");
        write_instance_files(&layout, &order).unwrap();
        assert_eq!(public_host_key(&layout, order.task_id), Some(key));
        let file = layout.etc(order.task_id).join(HOST_KEY_FILE);
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn agent_is_replaced_only_if_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), dir.path());
        let executable = dir.path().join("exe");
        let target = layout.agent_dir().join(AGENT_NAME);
        let install = |content: &str| {
            fs::write(&executable, content).unwrap();
            install_agent(&layout, &executable).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), content);
            std::os::unix::fs::MetadataExt::ino(&fs::metadata(&target).unwrap())
        };
        let first = install("one");
        assert_eq!(install("one"), first);
        assert_ne!(install("two"), first);
    }

    #[test]
    fn unnamed_instance_is_named_after_its_id() {
        let order = order(Intent::created());
        let id = InstanceId::from_u64(7_398_213_345_412_345_856);
        assert_eq!(hostname(&order.spec, id), "vps-12345856");
    }
}
