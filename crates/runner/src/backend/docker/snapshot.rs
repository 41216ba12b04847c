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
use bollard::models::{ContainerConfig, ImageInspect};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use kohakuriver_model::{InstanceId, SnapshotRef};
use kohakuriver_runner_link::protocol::Snapshot;

use super::client::{Engine, status};
use super::container;
use super::flatten::{self, Target};
use super::own_files::{OwnFiles, saved};
use crate::backend::{BackendError, SnapshotSpec};
use crate::clock;

const LABEL_NAME: &str = "kohakuriver.snapshot_name";
pub const LABEL_DEPTH: &str = "kohakuriver.snapshot_depth";
/// Where images of deleted snapshots stay that containers are built on.
const KEPT: &str = "kohakuriver-kept";
/// Far from the engine's limit, also on top of an image that has many layers itself.
const DEEPEST: u32 = 8;

fn repository(id: InstanceId) -> String {
    format!("kohakuriver-snapshot/vps-{id}")
}

/// Returns the engine's name of a snapshot.
pub fn reference(snapshot: SnapshotRef) -> String {
    target(snapshot).reference()
}

pub fn target(snapshot: SnapshotRef) -> Target {
    Target {
        repository: repository(snapshot.task_id),
        tag: snapshot.tag.to_string(),
        helper: helper(snapshot.task_id),
    }
}

fn helper(id: InstanceId) -> String {
    format!("kohakuriver-flatten-{id}")
}

pub async fn create(
    engine: &Engine,
    own: &OwnFiles,
    id: InstanceId,
    wish: &SnapshotSpec,
    keep: u32,
) -> Result<Snapshot, BackendError> {
    let docker = engine.patient().await?;
    let failed = |error| engine.refused("save", error);
    let container = docker.inspect_container(&container::name(id), None).await.map_err(failed)?;
    let paths = container::volumes(&container);
    if !paths.is_empty() {
        return Err(BackendError::OutsideDisk { paths });
    }
    if saved::has(&container, own) {
        saved::save(engine, &docker, id, own).await?;
    }
    let image = container.image.unwrap_or_default();
    let depth = docker.inspect_image(&image).await.map_or(0, |image| depth_of(&image));
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
        .build();
    // In the body, where a value can have any character and any length.
    let config = ContainerConfig { labels: Some(labels.clone()), ..ContainerConfig::default() };
    docker.commit_container(options, config).await.map_err(failed)?;
    if flatten {
        let made = SnapshotRef { task_id: id, tag };
        flatten_snapshot(engine, &docker, made, &labels, &wish.message).await?;
    }
    if keep > 0 {
        prune(engine, &docker, id, keep as usize).await?;
    }
    let all = list(engine, id).await?;
    all.into_iter()
        .find(|snapshot| snapshot.tag == tag)
        .ok_or_else(|| BackendError::SnapshotNotFound { which: tag.to_string() })
}

fn labels(wish: &SnapshotSpec, depth: u32) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_DEPTH.to_owned(), depth.to_string()),
        (LABEL_NAME.to_owned(), wish.name.clone().unwrap_or_default()),
    ])
}

/// How many layers lie between an image and one that was not committed by us. An image that was
/// pulled can bring any label.
fn depth_of(image: &ImageInspect) -> u32 {
    let labels = image.config.as_ref().and_then(|config| config.labels.as_ref());
    let depth = labels.and_then(|labels| labels.get(LABEL_DEPTH)?.parse::<u32>().ok());
    depth.unwrap_or(0).min(DEEPEST)
}

/// Flattens a snapshot's chain of layers. It works on the committed image, so the instance is frozen
/// only for the commit.
async fn flatten_snapshot(
    engine: &Engine,
    docker: &Docker,
    snapshot: SnapshotRef,
    labels: &HashMap<String, String>,
    message: &str,
) -> Result<(), BackendError> {
    let target = target(snapshot);
    let inspected = docker.inspect_image(&target.reference()).await;
    let long = inspected.map_err(|error| engine.refused("flatten", error))?.id.unwrap_or_default();
    flatten::flatten(engine, docker, &long, &target, labels, Some(message)).await?;
    // The name is the flat one's now.
    let options = RemoveImageOptionsBuilder::default().build();
    if let Err(error) = docker.remove_image(&long, Some(options), None).await {
        tracing::debug!(%error, "the long chain stays: something uses it");
    }
    Ok(())
}

/// Removes the container that a flattening works with, if there is one.
pub async fn remove_helper(engine: &Engine, id: InstanceId) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    flatten::remove_helper(engine, &docker, &helper(id)).await
}

/// Removes the oldest beyond `keep`. One that something is built on stays and counts.
async fn prune(
    engine: &Engine,
    docker: &Docker,
    id: InstanceId,
    keep: usize,
) -> Result<(), BackendError> {
    for tag in tags(engine, docker, id).await?.into_iter().skip(keep) {
        if let Err(error) = delete(engine, id, tag).await {
            tracing::debug!(task.id = %id, tag, %error, "an old snapshot stays");
        }
    }
    Ok(())
}

/// Tags of an instance's snapshots, newest first.
async fn tags(engine: &Engine, docker: &Docker, id: InstanceId) -> Result<Vec<u64>, BackendError> {
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

pub async fn list(engine: &Engine, id: InstanceId) -> Result<Vec<Snapshot>, BackendError> {
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

pub async fn delete(engine: &Engine, id: InstanceId, tag: u64) -> Result<(), BackendError> {
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

/// Deletes all snapshots of an instance. One that other containers are built on gets another name until the last
/// of them is removed: a forced removal would take the image from stopped ones, which could never be saved again.
pub async fn delete_all(engine: &Engine, id: InstanceId) -> Result<(), BackendError> {
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
    use bollard::models::ImageConfig;

    use super::*;

    #[test]
    fn depth_of_foreign_image_is_bounded() {
        let image = |depth: &str| ImageInspect {
            config: Some(ImageConfig {
                labels: Some(HashMap::from([(LABEL_DEPTH.to_owned(), depth.to_owned())])),
                ..ImageConfig::default()
            }),
            ..ImageInspect::default()
        };
        assert_eq!(depth_of(&image("3")), 3);
        assert_eq!(depth_of(&image("4294967295")), DEEPEST);
        assert_eq!(depth_of(&image("-1")), 0);
        assert_eq!(depth_of(&ImageInspect::default()), 0);
    }
}
