//! From what an instance names as its image to the id of an image the engine has.
//!
//! ```text
//!  Snapshot     kohakuriver-snapshot/vps-<id>:<tag>
//!  Registry     listed registry, pulled as that reference (pull)
//!  Environment  newest <name>-<unix>.tar; loaded before and unchanged? -> use it   else load it
//!  Default      environment "base"? -> that   else here? -> use it   else build, from the image that
//!               the node's owner named or from the distribution's packages
//!     all of them --VOLUMEs?--> the same without (plain)
//! ```
//!
//! Each source has names of its own in the engine, and what a user writes reaches no other. An
//! environment's name, the default one's included, is never asked of a registry: a stranger could own it
//! there.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bollard::models::ImageInspect;
use kohakuriver_model::{ImageSource, InstanceSpec};
use serde::{Deserialize, Serialize};

use self::environment::{find_environment, repository};
pub(super) use self::transfer::drain;
use self::transfer::{file_body, import, load_and_tag, tag};
use super::base_image;
use super::client::{Engine, is_disk_full, status};
use super::settings::ContainerSettings;
use super::shared_job::{Jobs, Outcome, Reporter};
use super::snapshot;
use super::tarball::{self, TarKind};
use crate::backend::{BackendError, Progress};
use crate::layout::Layout;
use kohakuriver_durable as durable;

mod environment;
mod plain;
mod progress;
mod pull;
mod refusal;
mod transfer;

const BASE: &str = "base";

#[derive(Clone, Debug)]
pub struct Images {
    engine: Arc<Engine>,
    layout: Layout,
    settings: ContainerSettings,
    jobs: Arc<Jobs>,
}

/// The source of a loaded environment.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Loaded {
    file: String,
    bytes: u64,
    modified_ms: u64,
    image: String,
}

impl Images {
    pub fn new(engine: Arc<Engine>, layout: Layout, settings: ContainerSettings) -> Self {
        Self { engine, layout, settings, jobs: Arc::default() }
    }

    /// Dropping the future gives up, unless others wait for the same image.
    pub async fn prepare(&self, spec: &InstanceSpec, progress: Progress<'_>) -> Outcome {
        let id = self.of_source(spec, progress).await?;
        let Some(image) = self.inspect(&id).await? else {
            return Err(image_failure("the image is gone", &"it was removed on the node"));
        };
        plain::vet(&image, "the image")?;
        if plain::is_plain(&image) {
            return Ok(id);
        }
        // A snapshot that has VOLUMEs was made by an older version.
        let target = spec.snapshot.map_or_else(|| plain::name_of(&id), snapshot::target);
        if spec.snapshot.is_none()
            && let Some(made) = self.inspect(&target.reference()).await?
            && plain::is_plain(&made)
            && let Some(made) = made.id
        {
            return Ok(made);
        }
        let this = self.clone();
        let work = |reporter: Reporter| async move {
            reporter.step("making the image's volumes part of the disk", None);
            if let Err(error) = plain::sweep(&this.engine).await {
                tracing::debug!(%error, "images without a use stay");
            }
            plain::make(&this.engine, &image, &target).await
        };
        self.jobs.run(&format!("plain {id}"), progress, work).await
    }

    async fn of_source(&self, spec: &InstanceSpec, progress: Progress<'_>) -> Outcome {
        if let Some(wanted) = spec.snapshot {
            let known = self.local(&snapshot::reference(wanted)).await?;
            let which = wanted.tag.to_string();
            return known.ok_or(BackendError::SnapshotNotFound { which });
        }
        let this = self.clone();
        match &spec.image {
            ImageSource::Registry { reference } => self.of_registry(reference, progress).await,
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
                reason: "a container cannot start from it".to_owned(),
                hint: "leave --image out".to_owned(),
            }),
        }
    }

    async fn local(&self, reference: &str) -> Result<Option<String>, BackendError> {
        Ok(self.inspect(reference).await?.and_then(|image| image.id))
    }

    async fn inspect(&self, reference: &str) -> Result<Option<ImageInspect>, BackendError> {
        let docker = self.engine.docker().await?;
        match docker.inspect_image(reference).await {
            Ok(image) => Ok(Some(image)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.engine.failure(error)),
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
        if let Some(image) = &self.settings.default_image {
            return self.owners_default(image, &repository, reporter).await;
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

    /// From the image that the node's owner named, on whichever registry.
    async fn owners_default(&self, image: &str, repository: &str, reporter: &Reporter) -> Outcome {
        let id = match self.local(image).await? {
            Some(id) => id,
            None => self.pull(image, reporter).await?,
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
