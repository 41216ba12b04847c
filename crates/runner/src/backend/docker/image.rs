//! From what an instance names as its image to the id of an image the engine has.
//!
//! ```text
//!  Registry     here? -> use it        else pull
//!  Environment  newest <name>-<unix>.tar; loaded before and unchanged? -> use it   else load it
//!  Default      environment "base"? -> that   else here? -> use it   else pull   else build
//! ```
//!
//! An environment's name is never asked of a registry: a stranger could own it there.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bollard::models::CreateImageInfo;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptionsBuilder, TagImageOptionsBuilder,
};
use bollard::{Docker, body_try_stream};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use kohakuriver_model::ImageSource;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;

use super::base_image;
use super::client::{Engine, is_disk_full, plain, status};
use super::shared_job::{Jobs, Outcome, Reporter};
use super::tarball::{self, TarKind};
use crate::backend::{BackendError, Progress};
use crate::durable;
use crate::layout::Layout;

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
        Self {
            engine,
            layout,
            default_image,
            jobs: Arc::default(),
        }
    }

    /// Dropping the future gives up, unless others wait for the same image.
    pub async fn prepare(&self, source: &ImageSource, progress: Progress<'_>) -> Outcome {
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
                BackendError::ImageNotFound {
                    image: reference.to_owned(),
                    reason,
                }
            }
        };
        let step = format!("pulling {reference}");
        reporter.step(&step, None);
        let options = CreateImageOptionsBuilder::default()
            .from_image(reference)
            .build();
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
                    return Err(not_found(format!(
                        "its registry was silent for {seconds} s"
                    )));
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
            return Err(BackendError::EnvironmentNotFound {
                name: name.to_owned(),
                known,
            });
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
            file: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            bytes: metadata.len(),
            modified_ms: u64::try_from(modified.as_millis()).unwrap_or(u64::MAX),
            image: String::new(),
        };
        let repository = repository(name);
        let sidecar = self.layout.images_dir().join(format!("{name}.json"));
        if let Some(id) = self.local(&format!("{repository}:{BASE}")).await? {
            loaded.image = id;
            let known = fs::read(&sidecar)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
            if known.as_ref() == Some(&loaded) {
                return Ok(loaded.image);
            }
        }
        loaded.image = self
            .load(&repository, path, metadata.len(), reporter)
            .await?;
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
        let step = format!(
            "loading {}",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
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
        let bytes = fs::metadata(build.tar())
            .map_err(|error| image_failure(what, &error))?
            .len();
        let step = "building the base environment: importing".to_owned();
        let body = file_body(build.tar(), bytes, step, reporter.clone())
            .await
            .map_err(|error| image_failure(what, &error))?;
        let docker = self.engine.patient().await?;
        import(&docker, body, &repository)
            .await
            .map_err(|reason| image_failure(what, &reason))?;
        self.must_have(&repository).await
    }

    async fn pull_default(&self, repository: &str, reporter: &Reporter) -> Outcome {
        let id = match self.local(&self.default_image).await? {
            Some(id) => id,
            None => {
                self.pull(&self.default_image, DEFAULT_PULL_SILENCE, reporter)
                    .await?
            }
        };
        let docker = self.engine.patient().await?;
        tag(&docker, &id, repository)
            .await
            .map_err(|error| self.engine.failure(error))?;
        Ok(id)
    }

    async fn must_have(&self, repository: &str) -> Outcome {
        let id = self.local(&format!("{repository}:{BASE}")).await?;
        id.ok_or_else(|| image_failure("cannot load the environment", &"no image came of it"))
    }
}

/// Docker wants lower case and single separators; other names get a name of their own.
fn repository(name: &str) -> String {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let parts = name.split(['-', '.', '_']).all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    });
    if plain || parts {
        return format!("kohakuriver/{name}");
    }
    let digest = Sha256::digest(name.as_bytes());
    let short: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("kohakuriver/environment-{short}")
}

/// The newest tarball of `name`, and every name there is.
fn find_environment(dir: &Path, name: &str) -> (Option<PathBuf>, Vec<String>) {
    let mut newest: Option<(u64, PathBuf)> = None;
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let Some(stem) = file.to_str().and_then(|file| file.strip_suffix(".tar")) else {
            continue;
        };
        let Some((found, time)) = stem.rsplit_once('-') else {
            continue;
        };
        let Ok(time) = time.parse::<u64>() else {
            continue;
        };
        if found == name && newest.as_ref().is_none_or(|(known, _)| time > *known) {
            newest = Some((time, entry.path()));
        }
        names.push(found.to_owned());
    }
    names.sort();
    names.dedup();
    names.truncate(50);
    (newest.map(|(_, path)| path), names)
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

type Body = BoxStream<'static, std::io::Result<Bytes>>;

/// The file as a request body that tells how much of it went.
async fn file_body(
    path: &Path,
    bytes: u64,
    step: String,
    reporter: Reporter,
) -> std::io::Result<Body> {
    let file = tokio::fs::File::open(path).await?;
    let mut sent = 0u64;
    let mut throttle = Throttle::default();
    let stream = ReaderStream::with_capacity(file, 256 * 1024).inspect(move |chunk| {
        sent += chunk.as_ref().map_or(0, |chunk: &Bytes| chunk.len() as u64);
        if throttle.due() {
            reporter.step(&step, u8::try_from(sent * 100 / bytes.max(1)).ok());
        }
    });
    Ok(stream.boxed())
}

async fn import(docker: &Docker, body: Body, repository: &str) -> Result<(), String> {
    const PATH: &str = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(repository)
        .tag(BASE)
        .changes(vec![PATH.to_owned()])
        .build();
    drain(docker.create_image(Some(options), Some(body_try_stream(body)), None))
        .await
        .map(drop)
}

async fn load_and_tag(docker: &Docker, body: Body, repository: &str) -> Result<(), String> {
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let said = drain(docker.import_image(options, body_try_stream(body), None)).await?;
    let loaded = said
        .iter()
        .filter_map(|message| message.stream.as_deref())
        .find_map(|line| {
            line.trim()
                .strip_prefix("Loaded image ID: ")
                .or(line.trim().strip_prefix("Loaded image: "))
        });
    let Some(loaded) = loaded else {
        return Err("the tarball holds no image".to_owned());
    };
    tag(docker, loaded, repository)
        .await
        .map_err(|error| plain(&error))
}

async fn tag(docker: &Docker, image: &str, repository: &str) -> Result<(), bollard::errors::Error> {
    let options = TagImageOptionsBuilder::default()
        .repo(repository)
        .tag(BASE)
        .build();
    docker.tag_image(image, Some(options)).await
}

async fn drain<T>(
    messages: impl Stream<Item = Result<T, bollard::errors::Error>>,
) -> Result<Vec<T>, String> {
    let mut messages = Box::pin(messages);
    let mut said = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| plain(&error))?;
        // Only the outcome is of interest, and an archive may hold many layers.
        if said.len() < 1000 {
            said.push(message);
        }
    }
    Ok(said)
}

/// How far a pull is, over all layers; never backwards.
#[derive(Debug, Default)]
struct Layers {
    parts: HashMap<String, f64>,
    best: u8,
}

impl Layers {
    fn hear(&mut self, message: &CreateImageInfo) -> Option<u8> {
        let id = message.id.clone()?;
        let detail = message.progress_detail.as_ref();
        let part = detail.and_then(|detail| {
            let total = detail.total.filter(|total| *total > 0)?;
            Some((detail.current? as f64 / total as f64).clamp(0.0, 1.0))
        });
        // Downloading weighs more than unpacking on every network slower than the disk.
        let part = match message.status.as_deref()? {
            "Downloading" => 0.7 * part.unwrap_or(0.0),
            "Verifying Checksum" | "Download complete" => 0.7,
            "Extracting" => 0.7 + 0.3 * part.unwrap_or(0.0),
            "Pull complete" | "Already exists" => 1.0,
            "Pulling fs layer" | "Waiting" => 0.0,
            _ => return None,
        };
        self.parts.insert(id, part);
        let sum: f64 = self.parts.values().sum();
        let percent = (sum / self.parts.len() as f64 * 100.0) as u8;
        self.best = self.best.max(percent.min(99));
        Some(self.best)
    }
}

/// Four reports a second are plenty for people and cheap for the link.
#[derive(Debug, Default)]
struct Throttle(Option<tokio::time::Instant>);

impl Throttle {
    fn due(&mut self) -> bool {
        let now = tokio::time::Instant::now();
        let due = self
            .0
            .is_none_or(|last| now - last >= Duration::from_millis(250));
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn said(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(ProgressDetail {
                current: Some(current),
                total: Some(total),
            }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn a_pull_only_goes_forward() {
        let mut layers = Layers::default();
        assert_eq!(
            layers.hear(&said("12", "Pulling from library/debian", 0, 0)),
            None
        );
        assert_eq!(layers.hear(&said("a", "Downloading", 50, 100)), Some(35));
        assert_eq!(layers.hear(&said("b", "Pulling fs layer", 0, 0)), Some(35));
        assert_eq!(layers.hear(&said("a", "Pull complete", 0, 0)), Some(50));
        assert_eq!(layers.hear(&said("b", "Already exists", 0, 0)), Some(99));
    }

    #[test]
    fn the_newest_tarball_wins_and_others_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "a-b-9.tar",
            "a-b-10.tar",
            "a-b-x.tar",
            "z-1.tar",
            "readme.md",
            "a-b-11.tar.part",
        ] {
            fs::write(dir.path().join(file), b"").unwrap();
        }
        let (found, names) = find_environment(dir.path(), "a-b");
        assert_eq!(found, Some(dir.path().join("a-b-10.tar")));
        assert_eq!(names, ["a-b", "z"]);
        assert_eq!(
            find_environment(&dir.path().join("none"), "a"),
            (None, vec![])
        );
    }

    #[test]
    fn every_environment_has_a_repository_docker_accepts() {
        assert_eq!(repository("my-env.2"), "kohakuriver/my-env.2");
        for odd in ["My", "a--b", "a-", "A"] {
            assert!(
                repository(odd).starts_with("kohakuriver/environment-"),
                "{odd}"
            );
        }
        assert_ne!(repository("My"), repository("MY"));
    }
}
