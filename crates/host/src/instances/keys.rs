//! The public keys that may log in to an instance.

use kohakuriver_api::SshKey;
use russh::keys::{HashAlg, PublicKey};

use super::request::RequestError;

/// A person has a few keys; a hundred is somebody's mistake.
const MAX_KEYS: usize = 100;
const MAX_KEY_TEXT: usize = 64 * 1024;

/// Every line must be a key: a typing error should not surface as "permission denied" later.
pub fn parse(text: &str) -> Result<Vec<String>, RequestError> {
    if text.len() > MAX_KEY_TEXT {
        return Err(RequestError::TooManyKeys);
    }
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if PublicKey::from_openssh(line).is_err() {
            return Err(RequestError::BadKey { line: index + 1 });
        }
        keys.push(line.to_owned());
    }
    match keys.len() {
        0 => Err(RequestError::NoKey),
        1..=MAX_KEYS => Ok(keys),
        _ => Err(RequestError::TooManyKeys),
    }
}

/// Adds keys; one that is there already stays as it is.
pub fn add(keys: &mut Vec<String>, text: &str) -> Result<(), RequestError> {
    for line in parse(text)? {
        let new = PublicKey::from_openssh(&line).map_err(|_| RequestError::NoKey)?;
        let known = |old: &String| {
            PublicKey::from_openssh(old).is_ok_and(|old| old.key_data() == new.key_data())
        };
        if !keys.iter().any(known) {
            keys.push(line);
        }
    }
    if keys.len() > MAX_KEYS { Err(RequestError::TooManyKeys) } else { Ok(()) }
}

/// Removes the one key that `which` means: its fingerprint, its comment, or itself.
pub fn remove(keys: &mut Vec<String>, which: &str) -> Result<(), RequestError> {
    let wanted = PublicKey::from_openssh(which.trim()).ok();
    let is_it = |line: &String| {
        let Ok(key) = PublicKey::from_openssh(line) else {
            return line == which;
        };
        match &wanted {
            Some(wanted) => wanted.key_data() == key.key_data(),
            None => fingerprint(&key) == which || comment(&key) == which,
        }
    };
    match keys.iter().filter(|line| is_it(line)).count() {
        0 => Err(RequestError::UnknownKey(which.to_owned())),
        1 => {
            keys.retain(|line| !is_it(line));
            Ok(())
        }
        _ => Err(RequestError::KeyAmbiguous(which.to_owned())),
    }
}

pub fn describe(lines: &[String]) -> Vec<SshKey> {
    let described = |line: &String| {
        let key = PublicKey::from_openssh(line).ok()?;
        Some(SshKey {
            fingerprint: fingerprint(&key),
            algorithm: key.algorithm().to_string(),
            comment: comment(&key),
            public_key: line.clone(),
        })
    };
    lines.iter().filter_map(described).collect()
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn comment(key: &PublicKey) -> String {
    key.comment().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ ann@pc";
    const BOB: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X bob";

    #[test]
    fn a_key_is_added_once_whatever_its_comment() {
        let mut keys = vec![ANN.to_owned()];
        add(&mut keys, &ANN.replace("ann@pc", "again")).unwrap();
        assert_eq!(keys, [ANN]);
        add(&mut keys, &format!("# mine\n\n{BOB}\n")).unwrap();
        assert_eq!(keys, [ANN, BOB]);
        assert!(matches!(
            add(&mut keys, "ssh-ed25519 nonsense"),
            Err(RequestError::BadKey { line: 1 })
        ));
    }

    #[test]
    fn a_key_is_removed_by_fingerprint_comment_or_itself() {
        for which in [&describe(&[ANN.to_owned()])[0].fingerprint, "ann@pc", ANN] {
            let mut keys = vec![ANN.to_owned(), BOB.to_owned()];
            remove(&mut keys, which).unwrap();
            assert_eq!(keys, [BOB]);
            assert!(matches!(remove(&mut keys, which), Err(RequestError::UnknownKey(_))));
        }
        let mut twins = vec![ANN.to_owned(), BOB.replace("bob", "ann@pc")];
        assert!(matches!(remove(&mut twins, "ann@pc"), Err(RequestError::KeyAmbiguous(_))));
    }
}
