//! From what an instance names as its image to the id of an image the engine has.
//!
//! ```text
//!  Registry     here? -> use it        else pull
//!  Environment  newest <name>-<unix>.tar; loaded before and unchanged? -> use it   else load it
//!  Default      environment "base"? -> that   else here? -> use it   else pull   else build
//! ```
//!
//! An environment's name is never asked of a registry: a stranger could own it there.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use kohakuriver_model::{ImageSource, InstanceSpec};
use serde::{Deserialize, Serialize};

use self::environment::{find_environment, repository};
use self::progress::{Layers, Throttle};
pub(super) use self::transfer::drain;
use self::transfer::{file_body, import, load_and_tag, tag};
use super::base_image;
use super::client::{Engine, is_disk_full, plain, status};
use super::shared_job::{Jobs, Outcome, Reporter};
use super::snapshot;
use super::tarball::{self, TarKind};
use crate::backend::{BackendError, Progress};
use crate::durable;
use crate::layout::Layout;

mod environment;
mod progress;
mod transfer;

/// A registry that says nothing for this long is not going to.
const PULL_SILENCE: Duration = Duration::from_secs(120);
/// Building the base takes less time than waiting for a registry that cannot be reached.
const DEFAULT_PULL_SILENCE: Duration = Duration::from_secs(20);
const BASE: &str = "base";

#[derive(Clone, Debug)]
pub struct Images {
    engine: Arc<Engine>,
    layout: Layout,
    default_image: String,
    jobs: Arc<Jobs>,
}

/// What a loaded environment was made from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Loaded {
    file: String,
    bytes: u64,
    modified_ms: u64,
    image: String,
}

impl Images {
    pub fn new(engine: Arc<Engine>, layout: Layout, default_image: String) -> Self {
        Self { engine, layout, default_image, jobs: Arc::default() }
    }

    /// Dropping the future gives up, unless others wait for the same image.
    pub async fn prepare(&self, spec: &InstanceSpec, progress: Progress<'_>) -> Outcome {
        if let Some(wanted) = spec.snapshot {
            let known = self.local(&snapshot::reference(wanted)).await?;
            let which = wanted.tag.to_string();
            return known.ok_or(BackendError::SnapshotNotFound { which });
        }
        let source = &spec.image;
        let this = self.clone();
        match source {
            ImageSource::Registry { reference } => {
                // Without a job where it is here: the common case is one question.
                if let Some(id) = self.local(reference).await? {
                    return Ok(id);
                }
                let reference = reference.clone();
                let key = format!("registry {reference}");
                let work =
                    |reporter| async move { this.pull(&reference, PULL_SILENCE, &reporter).await };
                self.jobs.run(&key, progress, work).await
            }
            ImageSource::Environment { name } => {
                let name = name.clone();
                let key = format!("environment {name}");
                let work = |reporter| async move { this.environment(&name, &reporter).await };
                self.jobs.run(&key, progress, work).await
            }
            ImageSource::Default => {
                let work = |reporter| async move { this.default_environment(&reporter).await };
                self.jobs.run("environment base", progress, work).await
            }
            ImageSource::VmImage { name } => Err(BackendError::ImageUnavailable {
                what: format!("{name} is an image of virtual machines"),
                reason: "a container cannot be made of it".to_owned(),
                hint: "leave --image out".to_owned(),
            }),
        }
    }

    async fn local(&self, reference: &str) -> Result<Option<String>, BackendError> {
        let docker = self.engine.docker().await?;
        match docker.inspect_image(reference).await {
            Ok(image) => Ok(image.id),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.engine.failure(error)),
        }
    }

    async fn pull(&self, reference: &str, silence: Duration, reporter: &Reporter) -> Outcome {
        let docker = self.engine.patient().await?;
        let not_found = |reason: String| {
            if is_disk_full(&reason) {
                BackendError::DiskFull { reason }
            } else {
                BackendError::ImageNotFound { image: reference.to_owned(), reason }
            }
        };
        let step = format!("pulling {reference}");
        reporter.step(&step, None);
        let options = CreateImageOptionsBuilder::default().from_image(reference).build();
        let mut messages = Box::pin(docker.create_image(Some(options), None, None));
        let mut layers = Layers::default();
        let mut throttle = Throttle::default();
        loop {
            match tokio::time::timeout(silence, messages.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(message))) => {
                    if let Some(percent) = layers.hear(&message)
                        && throttle.due()
                    {
                        reporter.step(&step, Some(percent));
                    }
                }
                Ok(Some(Err(error))) => return Err(not_found(plain(&error))),
                Err(_) => {
                    let seconds = silence.as_secs();
                    return Err(not_found(format!("its registry was silent for {seconds} s")));
                }
            }
        }
        match self.local(reference).await? {
            Some(id) => Ok(id),
            None => Err(not_found("the pull ended without an image".to_owned())),
        }
    }

    async fn environment(&self, name: &str, reporter: &Reporter) -> Outcome {
        let dir = self.layout.environments();
        let (wanted, names) = blocking({
            let name = name.to_owned();
            move || find_environment(&dir, &name)
        })
        .await?;
        let Some(path) = wanted else {
            let known = match names.len() {
                0 => "there are none".to_owned(),
                _ => format!("there are: {}", names.join(", ")),
            };
            return Err(BackendError::EnvironmentNotFound { name: name.to_owned(), known });
        };
        self.load_unless_known(name, &path, reporter).await
    }

    async fn load_unless_known(&self, name: &str, path: &Path, reporter: &Reporter) -> Outcome {
        let unreadable =
            |error: std::io::Error| image_failure("cannot read the environment", &error);
        let metadata = fs::metadata(path).map_err(unreadable)?;
        let modified = metadata.modified().map_err(unreadable)?;
        let modified = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut loaded = Loaded {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: metadata.len(),
            modified_ms: u64::try_from(modified.as_millis()).unwrap_or(u64::MAX),
            image: String::new(),
        };
        let repository = repository(name);
        let sidecar = self.layout.images_dir().join(format!("{name}.json"));
        if let Some(id) = self.local(&format!("{repository}:{BASE}")).await? {
            loaded.image = id;
            let known = fs::read(&sidecar).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if known.as_ref() == Some(&loaded) {
                return Ok(loaded.image);
            }
        }
        loaded.image = self.load(&repository, path, metadata.len(), reporter).await?;
        let text = serde_json::to_vec_pretty(&loaded).unwrap_or_default();
        let written = durable::private_dir(&self.layout.images_dir())
            .and_then(|()| durable::write(&sidecar, &text, 0o600));
        if let Err(error) = written {
            tracing::warn!(%error, name, "cannot note the loaded environment; it will be loaded again");
        }
        Ok(loaded.image)
    }

    async fn load(
        &self,
        repository: &str,
        path: &Path,
        bytes: u64,
        reporter: &Reporter,
    ) -> Outcome {
        let what = "cannot load the environment";
        let kind = blocking({
            let path = path.to_owned();
            move || tarball::kind(&path)
        })
        .await?
        .map_err(|error| image_failure(what, &error))?;
        let step = format!("loading {}", path.file_name().unwrap_or_default().to_string_lossy());
        let body = file_body(path, bytes, step, reporter.clone())
            .await
            .map_err(|error| image_failure(what, &error))?;
        let docker = self.engine.patient().await?;
        match kind {
            TarKind::RootFs => import(&docker, body, repository).await,
            TarKind::Image => load_and_tag(&docker, body, repository).await,
        }
        .map_err(|reason| image_failure(what, &reason))?;
        self.must_have(repository).await
    }

    async fn default_environment(&self, reporter: &Reporter) -> Outcome {
        let dir = self.layout.environments();
        let (tar, _) = blocking(move || find_environment(&dir, BASE)).await?;
        if let Some(path) = tar {
            return self.load_unless_known(BASE, &path, reporter).await;
        }
        let repository = repository(BASE);
        if let Some(id) = self.local(&format!("{repository}:{BASE}")).await? {
            return Ok(id);
        }
        match self.pull_default(&repository, reporter).await {
            Ok(id) => return Ok(id),
            Err(error) if error.is_engine_away() => return Err(error),
            Err(error) => {
                tracing::info!(%error, "building the base environment on this node");
            }
        }
        let build = base_image::build(&self.layout.images_dir(), reporter).await?;
        let what = "cannot import the base environment";
        let bytes = fs::metadata(build.tar()).map_err(|error| image_failure(what, &error))?.len();
        let step = "building the base environment: importing".to_owned();
        let body = file_body(build.tar(), bytes, step, reporter.clone())
            .await
            .map_err(|error| image_failure(what, &error))?;
        let docker = self.engine.patient().await?;
        import(&docker, body, &repository).await.map_err(|reason| image_failure(what, &reason))?;
        self.must_have(&repository).await
    }

    async fn pull_default(&self, repository: &str, reporter: &Reporter) -> Outcome {
        let id = match self.local(&self.default_image).await? {
            Some(id) => id,
            None => self.pull(&self.default_image, DEFAULT_PULL_SILENCE, reporter).await?,
        };
        let docker = self.engine.patient().await?;
        tag(&docker, &id, repository).await.map_err(|error| self.engine.failure(error))?;
        Ok(id)
    }

    async fn must_have(&self, repository: &str) -> Outcome {
        let id = self.local(&format!("{repository}:{BASE}")).await?;
        id.ok_or_else(|| image_failure("cannot load the environment", &"no image came of it"))
    }
}

fn image_failure(what: &str, reason: &dyn std::fmt::Display) -> BackendError {
    let reason = reason.to_string();
    if is_disk_full(&reason) {
        return BackendError::DiskFull { reason };
    }
    BackendError::ImageUnavailable {
        what: what.to_owned(),
        reason,
        hint: "check the tarball ('docker load' or 'docker import' must accept it)".to_owned(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BackendError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| image_failure("reading shared storage failed", &error))
}
