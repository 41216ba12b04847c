//! Why a pull failed, in words of our own.
//!
//! The engine's text repeats what a server answered, and tells open ports from closed ones: in the
//! hands of a user it would make the engine a window into the node's network. It goes to the
//! runner's log only.

use std::env::consts::{ARCH, OS};

use crate::backend::BackendError;
use crate::backend::docker::client::is_disk_full;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    DiskFull,
    /// Registries answer the same for what is not there and what is private.
    Denied,
    NotThere,
    OtherMachine,
    RateLimited,
    Unreachable,
    Silent,
    Other,
}

impl Refusal {
    /// Reads the engine's text.
    pub fn of(text: &str) -> Self {
        const SIGNS: [(Refusal, &[&str]); 5] = [
            (Refusal::RateLimited, &["toomanyrequests", "rate limit", "429 too many"]),
            (
                Refusal::OtherMachine,
                &["no matching manifest", "does not match the specified platform"],
            ),
            (Refusal::NotThere, &["manifest unknown", "manifest for", "name unknown", "not found"]),
            (
                Refusal::Denied,
                &["denied", "unauthorized", "authentication required", "no basic auth"],
            ),
            (
                Refusal::Unreachable,
                &[
                    "dial tcp",
                    "no such host",
                    "connection refused",
                    "connection reset",
                    "timeout",
                    "deadline exceeded",
                    "unreachable",
                    "x509:",
                    "tls:",
                    "request canceled",
                    "server gave http response",
                ],
            ),
        ];
        if is_disk_full(text) {
            return Self::DiskFull;
        }
        let text = text.to_ascii_lowercase();
        let found = SIGNS.iter().find(|(_, signs)| signs.iter().any(|sign| text.contains(sign)));
        found.map_or(Self::Other, |(refusal, _)| *refusal)
    }

    pub fn error(self, image: &str) -> BackendError {
        let reason = match self {
            Self::DiskFull => {
                return BackendError::DiskFull { reason: format!("{image} does not fit") };
            }
            Self::Denied => "its registry has no such image, or not for everybody".to_owned(),
            Self::NotThere => "its registry has no such image or tag".to_owned(),
            Self::OtherMachine => format!("its registry has none for {OS}/{ARCH}"),
            Self::RateLimited => "its registry allows this node no more pulls for now".to_owned(),
            Self::Unreachable => "its registry cannot be reached".to_owned(),
            Self::Silent => "its registry has stopped answering".to_owned(),
            Self::Other => {
                "its registry's answer could not be used; the runner's log has it".to_owned()
            }
        };
        BackendError::ImageNotFound { image: image.to_owned(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_texts_become_our_own() {
        for (text, refusal) in [
            (
                "pull access denied for a, repository does not exist or may require 'docker login'",
                Refusal::Denied,
            ),
            ("manifest for debian:99 not found: manifest unknown", Refusal::NotThere),
            (
                "no matching manifest for linux/s390x in the manifest list entries",
                Refusal::OtherMachine,
            ),
            ("toomanyrequests: You have reached your pull rate limit", Refusal::RateLimited),
            (
                "Get \"https://x/v2/\": dial tcp 10.0.0.1:443: connect: connection refused",
                Refusal::Unreachable,
            ),
            (
                "Get \"https://x/v2/\": x509: certificate signed by unknown authority",
                Refusal::Unreachable,
            ),
            ("write /var/lib/docker/tmp/x: no space left on device", Refusal::DiskFull),
            ("error parsing HTTP 403 response body: internal-body-secret-123", Refusal::Other),
        ] {
            assert_eq!(Refusal::of(text), refusal, "{text}");
        }
    }

    #[test]
    fn no_foreign_text_reaches_the_user() {
        for text in [
            "error parsing HTTP 403 response body: secret-123",
            "no space left on device: secret-123",
            "dial tcp 10.0.0.1:22: malformed HTTP status code \"secret-123\"",
        ] {
            let error = Refusal::of(text).error("debian:12");
            let said = format!("{error} {:?}", error.hint());
            assert!(!said.contains("secret") && !said.contains("10.0.0.1"), "{said}");
            assert!(said.contains("debian:12"), "{said}");
        }
    }
}
