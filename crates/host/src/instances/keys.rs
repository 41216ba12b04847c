//! The public keys that may log in to an instance.
//!
//! A key is stored with a short comment, so that the sum of all keys has a bound that is out of
//! reach in ordinary use.

use kohakuriver_api::SshKey;
use kohakuriver_model::bounds::{MAX_KEY_BYTES, MAX_KEY_COMMENT_CHARS, MAX_KEYS, MAX_KEYS_BYTES};
use russh::keys::{HashAlg, PublicKey};

use super::validate::RequestError;

/// Larger than what is stored: a request may hold comments that are dropped.
const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// Parses public keys. Every line must be a key: a typing error should not surface as "permission
/// denied" later.
pub fn parse(text: &str) -> Result<Vec<String>, RequestError> {
    if text.len() > MAX_REQUEST_BYTES {
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
        let line = leaned(line);
        if line.len() > MAX_KEY_BYTES {
            return Err(RequestError::LongKey { line: index + 1 });
        }
        keys.push(line);
    }
    if keys.is_empty() {
        return Err(RequestError::NoKey);
    }
    check_sum(&keys)?;
    Ok(keys)
}

fn check_sum(keys: &[String]) -> Result<(), RequestError> {
    let bytes: usize = keys.iter().map(String::len).sum();
    if keys.len() > MAX_KEYS || bytes > MAX_KEYS_BYTES {
        return Err(RequestError::TooManyKeys);
    }
    Ok(())
}

/// Returns a key's line with a short comment of harmless characters, or without one.
pub fn leaned(line: &str) -> String {
    let mut words = line.split_ascii_whitespace();
    let (Some(algorithm), Some(key)) = (words.next(), words.next()) else {
        return line.chars().take(MAX_KEY_COMMENT_CHARS).collect();
    };
    let comment = short_comment(&words.collect::<Vec<_>>().join(" "));
    format!("{algorithm} {key} {comment}").trim_end().to_owned()
}

fn short_comment(comment: &str) -> String {
    let harmless = |c: &char| !c.is_control() && !matches!(c, '"' | '\\');
    comment
        .chars()
        .filter(harmless)
        .take(MAX_KEY_COMMENT_CHARS)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Adds keys; a key that is there already stays unchanged.
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
    check_sum(keys)
}

/// Removes the key with this fingerprint, comment or line.
pub fn remove(keys: &mut Vec<String>, which: &str) -> Result<(), RequestError> {
    let key_to_remove = PublicKey::from_openssh(which.trim()).ok();
    let is_it = |line: &String| {
        let Ok(key) = PublicKey::from_openssh(line) else {
            return line == which;
        };
        match &key_to_remove {
            Some(key_to_remove) => key_to_remove.key_data() == key.key_data(),
            None => {
                let comment = comment(&key);
                fingerprint(&key) == which || comment == which || comment == short_comment(which)
            }
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
    fn key_is_added_once_regardless_of_comment() {
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
    fn long_key_comments_are_not_stored() {
        let long = ANN.replace("ann@pc", &"x\"".repeat(60_000));
        let mut keys = parse(&long).unwrap();
        assert_eq!(keys, [ANN.replace("ann@pc", &"x".repeat(MAX_KEY_COMMENT_CHARS))]);
        remove(&mut keys, &"x".repeat(60_000)).unwrap();
        assert!(keys.is_empty());
    }

    #[test]
    fn sum_of_keys_is_bounded_over_many_requests() {
        // A hundred of the largest RSA keys would fit by number.
        let large = |n: usize| format!("ssh-rsa {}{n}", "A".repeat(3000));
        let mut keys: Vec<String> = (0..21).map(large).collect();
        assert!(add(&mut keys, BOB).is_ok());
        keys.push(large(21));
        let more = add(&mut keys, ANN);
        assert!(matches!(more, Err(RequestError::TooManyKeys)), "{more:?}");
    }

    #[test]
    fn key_is_removed_by_fingerprint_comment_or_line() {
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
