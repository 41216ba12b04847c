//! Snapshots: images committed from an instance's container.
//!
//! ```text
//!  container --commit--> kohakuriver-snapshot/vps-<id>:<unix seconds>, one layer more than its image
//!                           --chain too long: export, import--> the same name, one layer
//! ```
//!
//! A disk that comes from a snapshot and is saved again grows a layer each time, and the engine
//! takes no more than about 127, so a long chain is flattened. Everything is found again by the
//! image's name and labels; nothing of it is written down elsewhere.

use std::collections::{HashMap, HashSet};

use bollard::Docker;
use bollard::body_try_stream;
use bollard::models::{ContainerConfig, ContainerCreateBody, ImageConfig};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures_util::StreamExt;
use kohakuriver_link::protocol::Snapshot;
use kohakuriver_model::{SnapshotRef, TaskId};

use super::client::{Engine, status};
use super::container;
use super::create_body::LABEL_MANAGED;
use super::image::drain;
use crate::backend::{BackendError, SnapshotWish};
use crate::clock;

const LABEL_NAME: &str = "kohakuriver.snapshot_name";
pub const LABEL_DEPTH: &str = "kohakuriver.snapshot_depth";
/// Where images of deleted snapshots stay that containers are built on.
const KEPT: &str = "kohakuriver-kept";
/// Far from the engine's limit, also on top of an image that has many layers itself.
const DEEPEST: u32 = 8;

fn repository(id: TaskId) -> String {
    format!("kohakuriver-snapshot/vps-{id}")
}

/// What the engine calls it.
pub fn reference(snapshot: SnapshotRef) -> String {
    format!("{}:{}", repository(snapshot.task_id), snapshot.tag)
}

pub async fn create(
    engine: &Engine,
    id: TaskId,
    wish: &SnapshotWish,
    keep: u32,
) -> Result<Snapshot, BackendError> {
    let docker = engine.patient().await?;
    let failed = |error| engine.refused("save", error);
    let container = docker.inspect_container(&container::name(id), None).await.map_err(failed)?;
    let image = container.image.unwrap_or_default();
    let depth = docker
        .inspect_image(&image)
        .await
        .ok()
        .and_then(|image| image.config?.labels?.get(LABEL_DEPTH)?.parse::<u32>().ok())
        .unwrap_or(0);
    let newest = tags(engine, &docker, id).await?.first().copied().unwrap_or(0);
    let now = u64::try_from(clock::now_ms() / 1000).unwrap_or(0);
    // Two in one second, or a clock that stepped back, must not take the other's name.
    let tag = now.max(newest + 1);
    let flatten = depth + 1 > DEEPEST;
    let labels = labels(wish, if flatten { 0 } else { depth + 1 });
    let options = CommitContainerOptionsBuilder::default()
        .container(&container::name(id))
        .repo(&repository(id))
        .tag(&tag.to_string())
        .comment(&wish.message)
        .pause(true)
        .changes(&labels.join("\n"))
        .build();
    docker.commit_container(options, ContainerConfig::default()).await.map_err(failed)?;
    if flatten {
        let made = SnapshotRef { task_id: id, tag };
        flatten_image(engine, &docker, made, &labels, &wish.message).await?;
    }
    if keep > 0 {
        prune(engine, &docker, id, keep as usize).await?;
    }
    let all = list(engine, id).await?;
    all.into_iter()
        .find(|snapshot| snapshot.tag == tag)
        .ok_or_else(|| BackendError::SnapshotNotFound { which: tag.to_string() })
}

/// Lines as in a Dockerfile. The name is checked by whoever takes it from people.
fn labels(wish: &SnapshotWish, depth: u32) -> Vec<String> {
    vec![
        format!("LABEL {LABEL_DEPTH}={depth}"),
        format!("LABEL {LABEL_NAME}={}", quoted(wish.name.as_deref().unwrap_or_default())),
    ]
}

/// One image with one layer in place of a chain. It is made from the committed image, so the
/// instance was frozen no longer than for the commit.
async fn flatten_image(
    engine: &Engine,
    docker: &Docker,
    snapshot: SnapshotRef,
    labels: &[String],
    message: &str,
) -> Result<(), BackendError> {
    let failed = |error| engine.refused("flatten", error);
    let long = reference(snapshot);
    let inspected = docker.inspect_image(&long).await.map_err(failed)?;
    let (Some(long_id), Some(config)) = (inspected.id, inspected.config) else {
        return Ok(());
    };
    let helper = helper_name(snapshot.task_id);
    remove_helper(engine, snapshot.task_id).await?;
    let body = ContainerCreateBody {
        image: Some(long_id.clone()),
        // Never started; the engine wants something to start all the same.
        cmd: Some(vec!["none".to_owned()]),
        labels: Some(HashMap::from([(LABEL_MANAGED.to_owned(), "false".to_owned())])),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::default().name(&helper).build();
    docker.create_container(Some(options), body).await.map_err(failed)?;
    let mut changes = labels.to_vec();
    changes.extend(environment(&config));
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(&repository(snapshot.task_id))
        .tag(&snapshot.tag.to_string())
        .message(message)
        .changes(changes)
        .build();
    let disk = docker.export_container(&helper).map(|part| part.map_err(std::io::Error::other));
    let imported = docker.create_image(Some(options), Some(body_try_stream(disk)), None);
    let outcome = drain(imported).await.map(drop);
    remove_helper(engine, snapshot.task_id).await?;
    outcome.map_err(|reason| BackendError::Refused { by: "Docker", act: "flatten", reason })?;
    // The name is the flat one's now.
    let options = RemoveImageOptionsBuilder::default().build();
    if let Err(error) = docker.remove_image(&long_id, Some(options), None).await {
        tracing::debug!(%error, "the long chain stays: something uses it");
    }
    Ok(())
}

/// The image's variables, as lines of a Dockerfile; an import forgets them.
fn environment(config: &ImageConfig) -> Vec<String> {
    let lines = config.env.iter().flatten().filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        // A line break would begin another instruction.
        (!value.contains(['\n', '\r'])).then(|| format!("ENV {name}={}", quoted(value)))
    });
    lines.collect()
}

fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for character in value.chars() {
        if matches!(character, '"' | '\\' | '$') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
    text
}

fn helper_name(id: TaskId) -> String {
    format!("kohakuriver-flatten-{id}")
}

/// Removes the container that a flattening works with, if there is one.
pub async fn remove_helper(engine: &Engine, id: TaskId) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match docker.remove_container(&helper_name(id), Some(options)).await {
        Err(error) if status(&error) != Some(404) => Err(engine.refused("flatten", error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the oldest beyond `keep`. One that something is built on stays and counts.
async fn prune(
    engine: &Engine,
    docker: &Docker,
    id: TaskId,
    keep: usize,
) -> Result<(), BackendError> {
    for tag in tags(engine, docker, id).await?.into_iter().skip(keep) {
        if let Err(error) = delete(engine, id, tag).await {
            tracing::debug!(task_id = %id, tag, %error, "an old snapshot stays");
        }
    }
    Ok(())
}

/// Tags of an instance's snapshots, newest first.
async fn tags(engine: &Engine, docker: &Docker, id: TaskId) -> Result<Vec<u64>, BackendError> {
    let filters = HashMap::from([("reference".to_owned(), vec![repository(id)])]);
    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    let images = docker.list_images(Some(options)).await.map_err(|error| engine.failure(error))?;
    let prefix = format!("{}:", repository(id));
    let mut tags: Vec<u64> = images
        .iter()
        .flat_map(|image| &image.repo_tags)
        .filter_map(|name| name.strip_prefix(&prefix)?.parse().ok())
        .collect();
    tags.sort_unstable_by(|a, b| b.cmp(a));
    Ok(tags)
}

pub async fn list(engine: &Engine, id: TaskId) -> Result<Vec<Snapshot>, BackendError> {
    let docker = engine.docker().await?;
    let failed = |error| engine.failure(error);
    let options = ListContainersOptionsBuilder::default().all(true).build();
    let used: HashSet<String> = docker
        .list_containers(Some(options))
        .await
        .map_err(failed)?
        .into_iter()
        .filter_map(|container| container.image_id)
        .collect();
    let mut snapshots = Vec::new();
    for tag in tags(engine, &docker, id).await? {
        let name = reference(SnapshotRef { task_id: id, tag });
        let image = match docker.inspect_image(&name).await {
            Ok(image) => image,
            // It went while we looked.
            Err(error) if status(&error) == Some(404) => continue,
            Err(error) => return Err(engine.failure(error)),
        };
        let layers = docker.image_history(&name).await.map_err(failed)?;
        let bytes = |size: Option<i64>| u64::try_from(size.unwrap_or(0)).unwrap_or(0);
        let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
        snapshots.push(Snapshot {
            tag,
            name: labels.get(LABEL_NAME).filter(|name| !name.is_empty()).cloned(),
            message: image.comment.unwrap_or_default(),
            size_bytes: bytes(image.size),
            own_bytes: bytes(layers.first().map(|layer| layer.size)),
            in_use: image.id.is_some_and(|id| used.contains(&id)),
        });
    }
    Ok(snapshots)
}

pub async fn delete(engine: &Engine, id: TaskId, tag: u64) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    let name = reference(SnapshotRef { task_id: id, tag });
    let options = RemoveImageOptionsBuilder::default().build();
    match docker.remove_image(&name, Some(options), None).await {
        Ok(_) => Ok(()),
        Err(error) if status(&error) == Some(404) => {
            Err(BackendError::SnapshotNotFound { which: tag.to_string() })
        }
        Err(error) if status(&error) == Some(409) => Err(BackendError::SnapshotInUse { tag }),
        Err(error) => Err(engine.refused("delete", error)),
    }
}

/// What containers of others are built on is kept under another name until the last of them goes: a
/// forced removal would take the image from under those that do not run, which could never be saved again.
pub async fn delete_all(engine: &Engine, id: TaskId) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    remove_helper(engine, id).await?;
    for tag in tags(engine, &docker, id).await? {
        let name = reference(SnapshotRef { task_id: id, tag });
        if remove_name(engine, &docker, &name).await? == Removed::InUse {
            let options = TagImageOptionsBuilder::default()
                .repo(&format!("{KEPT}/vps-{id}"))
                .tag(&tag.to_string())
                .build();
            let kept = docker.tag_image(&name, Some(options)).await;
            kept.map_err(|error| engine.refused("keep", error))?;
            remove_name(engine, &docker, &name).await?;
        }
    }
    Ok(())
}

/// Removes what [`delete_all`] kept and nothing is built on any more.
pub async fn delete_unused(engine: &Engine) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    let filters = HashMap::from([("reference".to_owned(), vec![format!("{KEPT}/*")])]);
    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    let images = docker.list_images(Some(options)).await.map_err(|error| engine.failure(error))?;
    for name in images.iter().flat_map(|image| &image.repo_tags) {
        if name.starts_with(KEPT) {
            remove_name(engine, &docker, name).await?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    Gone,
    InUse,
}

async fn remove_name(
    engine: &Engine,
    docker: &Docker,
    name: &str,
) -> Result<Removed, BackendError> {
    let options = RemoveImageOptionsBuilder::default().build();
    match docker.remove_image(name, Some(options), None).await {
        Ok(_) => Ok(Removed::Gone),
        Err(error) if status(&error) == Some(404) => Ok(Removed::Gone),
        Err(error) if status(&error) == Some(409) => Ok(Removed::InUse),
        Err(error) => Err(engine.refused("delete", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_cannot_break_out_of_their_line() {
        let config = ImageConfig {
            env: Some(vec!["A=b \"c\" $d \\".to_owned(), "B=x\nRUN y".to_owned(), "C".to_owned()]),
            ..ImageConfig::default()
        };
        assert_eq!(environment(&config), [r#"ENV A="b \"c\" \$d \\""#]);
    }
}
