//! SSH keys: finding the user's keys, and creating a pair for one VPS.
//!
//! Private keys are created here and never leave this machine; the host receives only public keys.

use std::fs;
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::error::CommandError;
use crate::files;

/// Returns the public keys of `~/.ssh/id_*.pub` that OpenSSH would offer, in file order.
pub fn discover(ssh_folder: &Path) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for path in public_files(ssh_folder) {
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

/// Lists `id_*.pub`, sorted.
fn public_files(ssh_folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(ssh_folder).into_iter().flatten().flatten();
    let is_public = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("id_") && name.ends_with(".pub")
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_public).collect();
    paths.sort();
    paths
}

/// Checks one line of a public key file.
pub fn public_key(line: &str) -> Result<String, CommandError> {
    let line = line.trim();
    let refuse = |what: &str| {
        CommandError::usage(format!("that is not an OpenSSH public key: {what}")).hint(
            "it is one line like `ssh-ed25519 AAAA... you@machine`, the content of a .pub file",
        )
    };
    if line.contains("PRIVATE KEY") {
        return Err(refuse("it is a private key, which must stay where it is"));
    }
    if let Some(options) = options_of(line) {
        return Err(refuse(&format!("options before a key ({options}) are not taken"))
            .hint("write the key alone, from its type on: `ssh-ed25519 AAAA...`"));
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

/// Returns the options before the key's type, as in `from="10.0.0.*" ssh-ed25519 AAAA...`.
fn options_of(line: &str) -> Option<&str> {
    let is_type = |word: &str| {
        ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|start| word.starts_with(start))
    };
    let start = line.match_indices(' ').map(|(at, _)| at + 1).find(|at| is_type(&line[*at..]))?;
    let options = line[..start].trim_end();
    (!is_type(options)).then_some(options)
}

/// Reads the keys of a file that the user named.
pub fn public_key_file(path: &Path) -> Result<String, CommandError> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| files::unreadable(path, &error))?;
    public_keys(&text).map_err(|failure| CommandError {
        message: format!("{shown}: {}", failure.message),
        ..failure
    })
}

/// Parses one or more keys, one per line.
pub fn public_keys(text: &str) -> Result<String, CommandError> {
    let is_key = |line: &str| !line.is_empty() && !line.starts_with('#');
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| is_key(line));
    let is_one = text.trim().lines().count() == 1;
    let numbered = |(index, line)| {
        public_key(line).map_err(|failure| match is_one {
            true => failure,
            false => {
                let message = format!("line {}: {}", index + 1, failure.message);
                CommandError { message, ..failure }
            }
        })
    };
    let keys: Vec<String> = lines.map(numbered).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err(public_key("").err().unwrap_or_else(CommandError::reported));
    }
    Ok(keys.join("\n"))
}

/// Returns the path of the key created for a VPS.
pub fn made_for(ssh_folder: &Path, id: &str) -> PathBuf {
    ssh_folder.join(format!("id-kohakuriver-{id}"))
}

/// Returns the keys that ssh offers by default, as far as they exist.
fn defaults(ssh_folder: &Path) -> Vec<PathBuf> {
    let names = ["id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa"].into_iter();
    names.map(|name| ssh_folder.join(name)).filter(|path| path.exists()).collect()
}

/// Returns the private keys to pass to ssh besides `named`. Passing one disables ssh's default
/// keys, so these are passed too; keys of the ssh agent are still tried.
///
/// Keys are uploaded from all of `$HOME/.ssh/id_*.pub`; ssh searches five names in the home
/// directory of the system's user database. Returns none where ssh finds the uploaded keys by
/// itself.
pub fn for_ssh(ssh_folder: &Path, named: Vec<PathBuf>) -> Vec<PathBuf> {
    let own = nix::unistd::Uid::current().as_raw();
    let home = kohakuriver_net::passwd::account_of(own).map(|account| account.home.join(".ssh"));
    identities(ssh_folder, home.as_deref().unwrap_or(ssh_folder), named)
}

fn identities(uploaded: &Path, searched: &Path, mut named: Vec<PathBuf>) -> Vec<PathBuf> {
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let by_itself = defaults(searched);
    let found: Vec<PathBuf> = by_itself.iter().map(real).collect();
    let mine: Vec<PathBuf> = public_files(uploaded)
        .iter()
        .map(|path| path.with_extension(""))
        .filter(|path| path.exists())
        .collect();
    if named.is_empty() && mine.iter().all(|path| found.contains(&real(path))) {
        return Vec::new();
    }
    for path in mine.into_iter().chain(by_itself) {
        if !named.iter().any(|other| real(other) == real(&path)) {
            named.push(path);
        }
    }
    named
}

/// A new key pair on disk. Dropping it removes the files, unless it is retained.
#[derive(Debug)]
pub struct MadeKey {
    path: PathBuf,
    /// Whether the name waits for the VPS's id.
    provisional: bool,
    kept: bool,
    pub public: String,
}

impl MadeKey {
    /// Creates an Ed25519 pair at `wanted`, or in `~/.ssh` under a temporary name.
    pub fn create(ssh_folder: &Path, wanted: Option<&Path>) -> Result<Self, CommandError> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => {
                files::private_folder(ssh_folder).map_err(|error| cannot(ssh_folder, &error))?;
                ssh_folder.join(format!(".id-kohakuriver-new-{:016x}", rand::random::<u64>()))
            }
        };
        let failed = |error: &dyn std::fmt::Display| {
            CommandError::request(format!("an SSH key could not be made: {error}"))
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

    /// Gives the pair its final name, which the VPS's id decides.
    pub fn name_after(&mut self, ssh_folder: &Path, id: &str) -> Result<(), CommandError> {
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

fn exists(path: &Path) -> CommandError {
    CommandError::usage(format!("{} exists already and is not overwritten", path.display()))
        .hint("name another file with --key-out-file")
}

fn cannot(path: &Path, error: &std::io::Error) -> CommandError {
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        return exists(path);
    }
    files::unwritable(path, error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";

    #[test]
    fn key_search_finds_only_valid_public_keys() {
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
    fn new_key_is_private_renamed_and_removed_unless_retained() {
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
    fn private_key_is_refused_as_public_key() {
        let failure = public_keys("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n").unwrap_err();
        assert!(failure.message.contains("private key"), "{}", failure.message);
        assert!(public_keys("# only a comment\n").is_err());
    }

    #[test]
    fn refused_key_is_named_by_its_line_and_reason() {
        let message = |text: &str| public_keys(text).unwrap_err().message;
        let odd = message(&format!("# mine\n\n{ED25519}\nssh-ed25519 AAAA\n"));
        assert!(odd.starts_with("line 4: "), "{odd}");
        let options = format!("{ED25519}\nfrom=\"10.0.0.1 b\",no-pty {ED25519}");
        let options = message(&options);
        assert!(
            options.contains("line 2: ") && options.contains("options before a key (from="),
            "{options}"
        );
        assert!(!message("nonsense").contains("line"), "one line has no number");
        let commented = format!("{ED25519} ssh-key of a b");
        assert_eq!(public_keys(&commented).unwrap(), commented);
    }

    #[test]
    fn uploaded_keys_outside_ssh_defaults_are_passed_to_ssh() {
        let (ours, system) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, system) = (ours.path(), system.path());
        let write = |folder: &Path, name: &str| {
            fs::write(folder.join(name), "").unwrap();
            fs::write(folder.join(format!("{name}.pub")), "").unwrap();
        };
        write(ours, "id_ed25519");
        fs::write(ours.join("id_gone.pub"), "").unwrap();
        assert!(identities(ours, ours, Vec::new()).is_empty(), "ssh finds it");
        write(system, "id_rsa");
        let of = |folder: &Path, name: &str| folder.join(name);
        let both = [of(ours, "id_ed25519"), of(system, "id_rsa")];
        assert_eq!(identities(ours, system, Vec::new()), both, "another home");
        write(ours, "id_lab");
        let all = [of(ours, "id_ed25519"), of(ours, "id_lab")];
        assert_eq!(identities(ours, ours, Vec::new()), all, "a name that ssh does not try");
        let made = of(ours, "id-kohakuriver-7");
        let with = identities(ours, ours, vec![made.clone()]);
        assert_eq!(with, [made, of(ours, "id_ed25519"), of(ours, "id_lab")]);
    }
}
