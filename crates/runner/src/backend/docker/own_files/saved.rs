//! An instance's own files, on the disk that a snapshot saves.

use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt;
use kohakuriver_model::InstanceId;

use super::{FILES, LONGEST, Made, OwnFiles};
use crate::backend::BackendError;
use crate::backend::docker::client::{Engine, status};
use crate::backend::docker::{container, tarball};

/// From the container's root.
const PLACE: &str = ".kohakuriver/kept";
/// All of them, with what a tar has around them.
const LARGEST: usize = 4 * (LONGEST as usize) + (64 << 10);

/// Checks that a container has them; older ones do not.
pub fn has(answer: &ContainerInspectResponse, own: &OwnFiles) -> bool {
    FILES.iter().any(|(file, target)| {
        let source = own.path(file).to_string_lossy().into_owned();
        answer.mounts.iter().flatten().any(|mount| {
            mount.destination.as_deref() == Some(*target) && mount.source.as_ref() == Some(&source)
        })
    })
}

/// Saves the files on the container's disk, running or not.
pub async fn save(
    engine: &Engine,
    docker: &Docker,
    id: InstanceId,
    own: &OwnFiles,
) -> Result<(), BackendError> {
    let refused = |reason: String| BackendError::Refused { by: "this node", act: "save", reason };
    let contents = own.contents().map_err(|error| refused(error.to_string()))?;
    let named: Vec<(String, &[u8])> =
        contents.iter().map(|(name, text)| (format!("{PLACE}/{name}"), text.as_slice())).collect();
    let entries: Vec<(&str, &[u8])> =
        named.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    let body = bollard::body_full(Bytes::from(tarball::pack(&entries)));
    let options = UploadToContainerOptionsBuilder::default().path("/").build();
    let put = docker.upload_to_container(&container::name(id), Some(options), body).await;
    put.map_err(|error| engine.refused("save", error))
}

/// Restores the files from the disk of a container that was never started.
pub async fn restore(
    engine: &Engine,
    docker: &Docker,
    id: InstanceId,
    own: &OwnFiles,
    made: &Made,
) -> Result<(), BackendError> {
    let options = DownloadFromContainerOptionsBuilder::default().path(&format!("/{PLACE}")).build();
    let name = container::name(id);
    let mut parts = Box::pin(docker.download_from_container(&name, Some(options)));
    let mut tar = Vec::new();
    while let Some(part) = parts.next().await {
        match part {
            Ok(part) if tar.len() + part.len() <= LARGEST => tar.extend_from_slice(&part),
            // Not what a snapshot of ours has.
            Ok(_) => return Ok(()),
            Err(error) if status(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(engine.refused("start", error)),
        }
    }
    let files = tarball::unpack(&tar);
    let kept: Vec<(String, Vec<u8>)> = files
        .into_iter()
        .filter_map(|(name, text)| Some((name.strip_prefix("kept/")?.to_owned(), text)))
        .collect();
    own.adopt(&kept, made).map_err(|error| BackendError::Refused {
        by: "this node",
        act: "start",
        reason: error.to_string(),
    })
}
