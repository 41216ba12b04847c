//! SSH keys: finding the user's own, making a new pair for one VPS.
//!
//! A private key is made here and never leaves this machine; the host only sees public keys.

use std::fs;
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::failure::Failure;
use crate::files;

/// The public keys of `~/.ssh/id_*.pub` that OpenSSH would offer, in file order.
pub fn discover(ssh_folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(ssh_folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("id_") && name.ends_with(".pub")
        })
        .collect();
    paths.sort();
    let mut keys: Vec<String> = Vec::new();
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for key in text.lines().filter_map(|line| public_key(line).ok()) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    keys
}

/// Checks one line of a public key file.
pub fn public_key(line: &str) -> Result<String, Failure> {
    let line = line.trim();
    let refuse = |what: &str| {
        Failure::usage(format!("that is not an OpenSSH public key: {what}")).hint(
            "it is one line like `ssh-ed25519 AAAA... you@machine`, the content of a .pub file",
        )
    };
    if line.contains("PRIVATE KEY") {
        return Err(refuse("it is a private key, which must stay where it is"));
    }
    let key = PublicKey::from_openssh(line).map_err(|error| refuse(&error.to_string()))?;
    let accepted = matches!(
        key.algorithm(),
        Algorithm::Ed25519
            | Algorithm::Ecdsa { .. }
            | Algorithm::Rsa { .. }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256
    );
    if !accepted {
        return Err(refuse(&format!("{} is not accepted any more", key.algorithm())));
    }
    Ok(line.to_owned())
}

/// The keys of a file the user named.
pub fn public_key_file(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("the key file {shown} cannot be read: {error}")))?;
    public_keys(&text)
        .map_err(|failure| Failure { message: format!("{shown}: {}", failure.message), ..failure })
}

/// One or several keys, a line each.
pub fn public_keys(text: &str) -> Result<String, Failure> {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(public_key).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err(public_key("").err().unwrap_or_else(Failure::reported));
    }
    Ok(keys.join("\n"))
}

/// Where the key made for a VPS is kept.
pub fn made_for(ssh_folder: &Path, id: &str) -> PathBuf {
    ssh_folder.join(format!("id-kohakuriver-{id}"))
}

/// The keys ssh offers by itself, as far as they exist.
pub fn defaults(ssh_folder: &Path) -> Vec<PathBuf> {
    let names = ["id_ed25519", "id_ecdsa", "id_rsa"].into_iter();
    names.map(|name| ssh_folder.join(name)).filter(|path| path.exists()).collect()
}

/// A new pair on disk. Unless it is kept, dropping it removes the files again.
#[derive(Debug)]
pub struct MadeKey {
    path: PathBuf,
    /// Waits for the VPS's id to get its name.
    provisional: bool,
    kept: bool,
    pub public: String,
}

impl MadeKey {
    /// Makes an Ed25519 pair at `wanted`, or in `~/.ssh` under a passing name.
    pub fn create(ssh_folder: &Path, wanted: Option<&Path>) -> Result<Self, Failure> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => {
                files::private_folder(ssh_folder).map_err(|error| cannot(ssh_folder, &error))?;
                ssh_folder.join(format!(".id-kohakuriver-new-{:016x}", rand::random::<u64>()))
            }
        };
        let failed = |error: &dyn std::fmt::Display| {
            Failure::request(format!("an SSH key could not be made: {error}"))
        };
        let mut key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
            .map_err(|error| failed(&error))?;
        key.set_comment("kohakuriver");
        let private = key.to_openssh(LineEnding::LF).map_err(|error| failed(&error))?;
        let public = key.public_key().to_openssh().map_err(|error| failed(&error))?;

        // An old public key beside a new private one would be a trap.
        if public_path(&path).exists() {
            return Err(exists(&public_path(&path)));
        }
        files::write_new(&path, 0o600, private.as_bytes())
            .map_err(|error| cannot(&path, &error))?;
        let made = Self { path, provisional: wanted.is_none(), kept: false, public };
        let public_file = public_path(&made.path);
        files::write_new(&public_file, 0o644, format!("{}\n", made.public).as_bytes())
            .map_err(|error| cannot(&public_file, &error))?;
        Ok(made)
    }

    /// Gives the pair its lasting name, which the VPS's id decides.
    pub fn name_after(&mut self, ssh_folder: &Path, id: &str) -> Result<(), Failure> {
        if !self.provisional {
            return Ok(());
        }
        let lasting = made_for(ssh_folder, id);
        fs::rename(public_path(&self.path), public_path(&lasting))
            .and_then(|()| fs::rename(&self.path, &lasting))
            .map_err(|error| cannot(&lasting, &error))?;
        self.path = lasting;
        self.provisional = false;
        Ok(())
    }

    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.path.clone()
    }
}

impl Drop for MadeKey {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(public_path(&self.path));
        }
    }
}

fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

fn exists(path: &Path) -> Failure {
    Failure::usage(format!("{} exists already and is not overwritten", path.display()))
        .hint("name another file with --key-out-file")
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        return exists(path);
    }
    Failure::usage(format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";

    #[test]
    fn only_valid_public_keys_of_the_user_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("id_ed25519.pub", &format!("{ED25519}\n"));
        write("id_copy.pub", &format!("{ED25519}\n"));
        write("id_rsa.pub", "not a key\n");
        write("id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
        write("other.pub", ED25519);
        assert_eq!(discover(folder.path()), [ED25519]);
        assert!(discover(&folder.path().join("absent")).is_empty());
    }

    #[test]
    fn a_made_key_is_private_renamed_and_removed_unless_kept() {
        let folder = tempfile::tempdir().unwrap();
        let ssh = folder.path().join(".ssh");
        let mut key = MadeKey::create(&ssh, None).unwrap();
        assert_eq!(ssh.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(key.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(public_key(&key.public).is_ok());
        key.name_after(&ssh, "77").unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&ssh).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["id-kohakuriver-77", "id-kohakuriver-77.pub"]);
        drop(key);
        assert_eq!(fs::read_dir(&ssh).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "precious").unwrap();
        let failure = MadeKey::create(folder.path(), Some(&path)).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_private_key_is_never_taken_for_a_public_one() {
        let failure = public_keys("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n").unwrap_err();
        assert!(failure.message.contains("private key"), "{}", failure.message);
        assert!(public_keys("# only a comment\n").is_err());
    }
}
