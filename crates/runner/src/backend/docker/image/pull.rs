//! Images of registries, as users name them.
//!
//! ```text
//!  reference --resolved in full--> an id, or an image of our own?  refused
//!     |--repository listed as local--> the node's image; never pulled
//!     |--registry not listed---------> refused, and the engine is not asked
//!     |--pulled here before----------> that image, if the engine still has it
//!     '--otherwise-------------------> pulled without credentials; its id is noted
//! ```
//!
//! The engine also has images that no user may have: private ones that the node's owner pulled
//! with a log-in, and ours. So a reference is never looked up among all images of the engine, only
//! among those that were pulled here as that reference.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use kohakuriver_model::ImageReference;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Images;
use super::progress::{Layers, Throttle};
use super::refusal::Refusal;
use crate::backend::docker::client::plain;
use crate::backend::docker::shared_job::{Outcome, Reporter};
use crate::backend::{BackendError, Progress};
use kohakuriver_durable as durable;

/// A registry that says nothing for this long is not going to.
const PULL_SILENCE: Duration = Duration::from_secs(120);

/// The resolution of a reference.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pulled {
    reference: String,
    image: String,
}

impl Images {
    /// The image of a reference that a user wrote.
    pub(super) async fn of_registry(&self, text: &str, progress: Progress<'_>) -> Outcome {
        let refused = |reason: String, hint: &str| {
            Err(BackendError::NotAllowed { reason, hint: hint.to_owned() })
        };
        let reference = match ImageReference::parse(text) {
            Ok(reference) => reference,
            Err(error) => {
                return refused(error.to_string(), "create the VPS again from another image");
            }
        };
        if self.settings.local_images.iter().any(|pattern| pattern.contains(&reference)) {
            let known = self.local(&reference.to_string()).await?;
            return known.ok_or_else(|| BackendError::ImageNotFound {
                image: text.to_owned(),
                reason: "its repository is one of those that this node does not pull".to_owned(),
            });
        }
        let registry = reference.registry();
        if !self.settings.registries.contains(registry) {
            return refused(
                format!("this node allows no images of the registry {registry}"),
                "`kohakuriver node status` shows the registries it allows; its owner lists more with --allow-registry",
            );
        }
        let note = note_path(&self.layout.images_dir(), &reference);
        if let Some(pulled) = read_note(&note, &reference)
            && let Some(id) = self.local(&pulled.image).await?
        {
            return Ok(id);
        }
        let this = self.clone();
        let key = format!("registry {reference}");
        let work = |reporter: Reporter| async move {
            let reference = reference.to_string();
            let image = this.pull(&reference, &reporter).await?;
            write_note(&note, &Pulled { reference, image: image.clone() });
            Ok(image)
        };
        self.jobs.run(&key, progress, work).await
    }

    /// Pulls without credentials.
    pub(super) async fn pull(&self, reference: &str, reporter: &Reporter) -> Outcome {
        let docker = self.engine.patient().await?;
        let refused = |refusal: Refusal| refusal.error(reference);
        let step = format!("pulling {reference}");
        reporter.step(&step, None);
        let options = CreateImageOptionsBuilder::default().from_image(reference).build();
        let mut messages = Box::pin(docker.create_image(Some(options), None, None));
        let (mut layers, mut throttle) = (Layers::default(), Throttle::default());
        loop {
            match tokio::time::timeout(PULL_SILENCE, messages.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(message))) => {
                    if let Some(percent) = layers.hear(&message)
                        && throttle.due()
                    {
                        reporter.step(&step, Some(percent));
                    }
                }
                Ok(Some(Err(error))) => {
                    let is_answer = matches!(
                        error,
                        Error::DockerResponseServerError { .. } | Error::DockerStreamError { .. }
                    );
                    if !is_answer {
                        return Err(self.engine.failure(error));
                    }
                    let text = plain(&error);
                    // Only here: it may repeat what a foreign server has answered.
                    tracing::info!(reference, error = ?text, "an image was not pulled");
                    return Err(refused(Refusal::of(&text)));
                }
                Err(_) => return Err(refused(Refusal::Silent)),
            }
        }
        self.local(reference).await?.ok_or_else(|| refused(Refusal::Other))
    }
}

/// Named by a digest: a reference has characters that a file's name cannot have.
fn note_path(images: &Path, reference: &ImageReference) -> PathBuf {
    let digest = Sha256::digest(reference.to_string().as_bytes());
    images.join("pulled").join(format!("{}.json", data_encoding::HEXLOWER.encode(&digest)))
}

fn read_note(path: &Path, reference: &ImageReference) -> Option<Pulled> {
    let note: Pulled = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (note.reference == reference.to_string() && note.image.starts_with("sha256:")).then_some(note)
}

fn write_note(path: &Path, note: &Pulled) {
    let dir = path.parent().unwrap_or(path);
    let text = serde_json::to_vec(note).unwrap_or_default();
    if let Err(error) = durable::private_dir(dir).and_then(|()| durable::write(path, &text, 0o600))
    {
        let reference = &note.reference;
        tracing::warn!(%error, reference, "cannot note the image; it will be pulled again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_counts_only_for_its_own_reference() {
        let dir = tempfile::tempdir().unwrap();
        let parse = |text| ImageReference::parse(text).unwrap();
        let (one, other) = (parse("debian:12"), parse("docker.io/library/debian:13"));
        let path = note_path(dir.path(), &one);
        assert_eq!(path, note_path(dir.path(), &parse("docker.io/library/debian:12")));
        assert_ne!(path, note_path(dir.path(), &other));
        let note = Pulled { reference: one.to_string(), image: "sha256:07".to_owned() };
        write_note(&path, &note);
        assert_eq!(read_note(&path, &other), None);
        assert_eq!(read_note(&path, &one), Some(note));
    }
}
