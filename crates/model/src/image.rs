//! Image references as users write them, and the node's rules for accepting them.
//!
//! A reference is always resolved in full, `registry/repository:tag`, as the Docker engine resolves
//! it, so that no spelling of it means an image id, an image of our own, or an unlisted registry.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The registry of a reference without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace of single-word repositories in the default registry.
const DEFAULT_NAMESPACE: &str = "library";
/// The engine's names of our own images: environments, snapshots, deleted snapshots still in use,
/// and images without VOLUMEs.
const OWN: [&str; 4] =
    ["kohakuriver", "kohakuriver-snapshot", "kohakuriver-kept", "kohakuriver-plain"];
const LONGEST: usize = 255;
const LONGEST_TAG: usize = 128;
/// Digest algorithms with their number of hexadecimal digits.
const DIGESTS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// Registries accepted by default: public ones that verify their users, by name and on the default
/// port.
pub const USUAL_REGISTRIES: [&str; 9] = [
    "docker.io",
    "ghcr.io",
    "quay.io",
    "gcr.io",
    "registry.k8s.io",
    "public.ecr.aws",
    "mcr.microsoft.com",
    "nvcr.io",
    "registry.gitlab.com",
];

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    #[error("'{0}' is not an image reference: write it as Docker does, for example debian:12")]
    Malformed(String),
    #[error("'{0}' is an image id: name the image by its repository, for example debian:12")]
    Id(String),
    #[error(
        "'{0}' is reserved for KohakuRiver's own images: choose an environment with --container, \
         a snapshot with --from-snapshot"
    )]
    Own(String),
    #[error("'{0}' is not a registry: write HOST or HOST:PORT")]
    Registry(String),
    #[error("'{0}' is not a repository: write it as Docker does, or as NAMESPACE/* for all of it")]
    Pattern(String),
}

/// A fully resolved reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    registry: Registry,
    path: String,
    /// `:tag`, `@digest` or both.
    suffix: String,
}

impl ImageReference {
    /// Parses a reference; refuses ids and names of our own images in every spelling.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let malformed = || ReferenceError::Malformed(text.to_owned());
        if text.len() > LONGEST {
            return Err(malformed());
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag, one before it a port.
        let last = name.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match name[last..].split_once(':') {
            Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
            None => (name, None),
        };
        let algorithm = |word: &str| DIGESTS.iter().find(|(name, _)| *name == word);
        if (algorithm(name).is_some() && tag.is_some()) || is_hex(name, 64) {
            return Err(ReferenceError::Id(text.to_owned()));
        }
        let is_digest = |digest: &str| {
            let parts = digest.split_once(':');
            parts.is_some_and(|(name, hex)| algorithm(name).is_some_and(|(_, n)| is_hex(hex, *n)))
        };
        if !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
            return Err(malformed());
        }
        let (registry, path) = resolve(name).ok_or_else(malformed)?;
        if is_own(&registry, &path) {
            return Err(ReferenceError::Own(text.to_owned()));
        }
        let suffix = match (tag, digest) {
            (None, None) => ":latest".to_owned(),
            (Some(tag), None) => format!(":{tag}"),
            (None, Some(digest)) => format!("@{digest}"),
            (Some(tag), Some(digest)) => format!(":{tag}@{digest}"),
        };
        Ok(Self { registry, path, suffix })
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns registry and repository, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}{}", self.registry, self.path, self.suffix)
    }
}

/// A registry: a host in lower case, and a port unless it is the default.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Registry(String);

impl Registry {
    /// Returns [`USUAL_REGISTRIES`].
    pub fn usual() -> Vec<Self> {
        USUAL_REGISTRIES.iter().map(|name| Self((*name).to_owned())).collect()
    }
}

impl Registry {
    /// Checks that a node's value is in the form that this program writes.
    pub fn is_valid(&self) -> bool {
        self.0.parse().as_ref() == Ok(self)
    }
}

impl FromStr for Registry {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ReferenceError::Registry(text.to_owned());
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let is_label = |label: &str| {
            let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
            ends(label.bytes().next())
                && ends(label.bytes().last())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let is_port = |port: &str| {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if text.len() > LONGEST || !host.split('.').all(is_label) || !port.is_none_or(is_port) {
            return Err(refused());
        }
        let name = text.to_ascii_lowercase();
        // The engine treats both as the same registry.
        Ok(Self(if name == "index.docker.io" { DEFAULT_REGISTRY.to_owned() } else { name }))
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Repositories whose images are used as present on the node and never pulled: one repository, or
/// with `/*` all below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RepositoryPattern(String);

impl RepositoryPattern {
    /// Checks that a node's value is in the form that this program writes.
    pub fn is_valid(&self) -> bool {
        self.0.parse().as_ref() == Ok(self)
    }

    pub fn contains(&self, reference: &ImageReference) -> bool {
        let repository = reference.repository();
        match self.0.strip_suffix('*') {
            Some(folder) => repository.starts_with(folder),
            None => repository == self.0,
        }
    }
}

impl FromStr for RepositoryPattern {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ReferenceError::Pattern(text.to_owned());
        let (name, all) = match text.strip_suffix("/*") {
            Some(folder) => (format!("{folder}/x"), true),
            None => (text.to_owned(), false),
        };
        let (registry, path) = resolve(&name).ok_or_else(refused)?;
        if is_own(&registry, &path) {
            return Err(ReferenceError::Own(text.to_owned()));
        }
        let repository = format!("{registry}/{path}");
        Ok(Self(match repository.strip_suffix('x') {
            Some(folder) if all => format!("{folder}*"),
            _ => repository,
        }))
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.strip_prefix("docker.io/").unwrap_or(&self.0))
    }
}

/// Returns the registry and repository of a name without tag and digest.
fn resolve(name: &str) -> Option<(Registry, String)> {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (first.parse::<Registry>().ok()?, rest)
        }
        Some(_) | None => (Registry(DEFAULT_REGISTRY.to_owned()), name),
    };
    if name.len() > LONGEST || !path.split('/').all(is_component) {
        return None;
    }
    let is_word = registry.0 == DEFAULT_REGISTRY && !path.contains('/');
    let path = if is_word { format!("{DEFAULT_NAMESPACE}/{path}") } else { path.to_owned() };
    Some((registry, path))
}

/// Our own names have no registry, which to the engine is the default one.
fn is_own(registry: &Registry, path: &str) -> bool {
    let path = path.strip_prefix("library/").unwrap_or(path);
    let first = path.split('/').next().unwrap_or_default();
    registry.0 == DEFAULT_REGISTRY && OWN.contains(&first)
}

/// Accepts lower-case letters and digits, separated by a dot, one or two underscores, or hyphens.
fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (component.bytes().next(), component.bytes().last()) else {
        return false;
    };
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    is_word(first)
        && is_word(last)
        && separators.filter(|between| !between.is_empty()).all(|between| {
            matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_hex(text: &str, digits: usize) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    text.len() == digits && text.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resolved(text: &str) -> String {
        ImageReference::parse(text).map_or_else(|error| error.to_string(), |r| r.to_string())
    }

    #[test]
    fn references_are_resolved_as_the_engine_does() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            ("DOCKER.io/debian", "docker.io/library/debian:latest".to_owned()),
            ("index.docker.io/a/b:1", "docker.io/a/b:1".to_owned()),
            ("Reg.Lab:5000/a/b_c.d-e:Tag-1", "reg.lab:5000/a/b_c.d-e:Tag-1".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest".to_owned()),
            (&format!("a@{digest}"), format!("docker.io/library/a@{digest}")),
            (&format!("q.io/a:b@{digest}"), format!("q.io/a:b@{digest}")),
            ("beef", "docker.io/library/beef:latest".to_owned()),
        ] {
            assert_eq!(resolved(text), whole, "{text}");
        }
    }

    #[test]
    fn own_image_names_are_refused_in_every_spelling() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for name in OWN.map(|first| format!("{first}/x")) {
            for registry in [
                "",
                "docker.io/",
                "Docker.IO/",
                "index.docker.io/",
                "docker.io/library/",
                "library/",
            ] {
                for suffix in ["", ":17960", &format!("@{digest}"), &format!(":1@{digest}")] {
                    let text = format!("{registry}{name}{suffix}");
                    let refused = ImageReference::parse(&text);
                    assert_eq!(refused, Err(ReferenceError::Own(text.clone())), "{text}");
                }
            }
        }
        for upper in ["KOHAKURIVER/base", "Kohakuriver-Snapshot/vps-7:1", "docker.io/KOHAKURIVER/x"]
        {
            assert!(ImageReference::parse(upper).is_err(), "{upper}");
        }
        for other in ["kohakuriver-test/busybox", "ghcr.io/kohakuriver/base", "kohaku/river"] {
            assert!(ImageReference::parse(other).is_ok(), "{other}");
        }
    }

    #[test]
    fn image_ids_are_refused_as_references() {
        let hex = "0a".repeat(32);
        for id in
            [hex.clone(), format!("sha256:{hex}"), "sha256:0a0b".to_owned(), format!("{hex}:1")]
        {
            assert_eq!(ImageReference::parse(&id), Err(ReferenceError::Id(id)));
        }
    }

    #[test]
    fn repository_patterns_match_their_repositories() {
        let covers = |pattern: &str, reference: &str| {
            let pattern: RepositoryPattern = pattern.parse().unwrap();
            pattern.contains(&ImageReference::parse(reference).unwrap())
        };
        assert!(covers("lab/*", "lab/a/b:1") && covers("lab/*", "docker.io/lab/a"));
        assert!(covers("debian", "docker.io/library/debian:12"));
        assert!(covers("reg.lab:5000/*", "reg.lab:5000/a"));
        assert!(!covers("lab/*", "label/a") && !covers("lab/a", "lab/ab"));
        assert!(!covers("lab/*", "reg.lab/lab/a"));
        for bad in ["*", "/*", "kohakuriver/*", "kohakuriver-snapshot/*", "a:1", "A/*", "la*"] {
            assert!(bad.parse::<RepositoryPattern>().is_err(), "{bad}");
        }
        assert_eq!("lab/*".parse::<RepositoryPattern>().unwrap().to_string(), "lab/*");
    }

    #[test]
    fn default_registries_have_no_address_or_port() {
        for name in USUAL_REGISTRIES {
            assert_eq!(name.parse::<Registry>().unwrap().to_string(), name);
            assert!(!name.contains(':') && name.bytes().any(|byte| byte.is_ascii_lowercase()));
        }
        for bad in ["", "a/b", "a b", "a:0", "a:99999", "a:+1", "-a", "a..b", "[::1]:5000"] {
            assert!(bad.parse::<Registry>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn resolved_references_resolve_to_themselves(text in "[a-zA-Z0-9./:@_-]{0,60}") {
            if let Ok(reference) = ImageReference::parse(&text) {
                let whole = reference.to_string();
                prop_assert_eq!(ImageReference::parse(&whole), Ok(reference));
                prop_assert!(whole.contains('/') && !whole.starts_with("docker.io/kohakuriver/"));
            }
        }
    }
}
