//! The host's own SSH keys, generated on first use and stored in its data directory, readable by
//! the host only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read or write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is not an SSH private key", path.display())]
    Key { path: PathBuf, source: russh::keys::Error },
}

/// Reads a private key, or generates an Ed25519 one. A file that holds no key is an error, and
/// never replaced.
pub fn load_or_create(path: &Path) -> Result<PrivateKey, KeyError> {
    let file = |source| KeyError::File { path: path.to_owned(), source };
    let key = |source| KeyError::Key { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => PrivateKey::from_openssh(text.as_bytes()).map_err(|error| key(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
                .map_err(|error| key(error.into()))?;
            let text = made.to_openssh(LineEnding::LF).map_err(|error| key(error.into()))?;
            kohakuriver_durable::write(path, text.as_bytes(), 0o600).map_err(file)?;
            Ok(made)
        }
        Err(error) => Err(file(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn key_is_private_stable_and_never_replaced_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&path).unwrap().public_key(), made.public_key());
        fs::write(&path, "damaged").unwrap();
        assert!(matches!(load_or_create(&path), Err(KeyError::Key { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "damaged");
    }
}
