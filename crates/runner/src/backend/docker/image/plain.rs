//! The same image without VOLUMEs.
//!
//! The engine gives a container an anonymous volume for each VOLUME of its image, beside the
//! container's disk: no commit has what is in it, and it goes with the container. An order can add
//! volumes but not take an image's away. So an instance is made from a second image that has the same
//! layers and everything else of its configuration:
//!
//! ```text
//!  image with VOLUMEs --load of its configuration alone--> kohakuriver-plain/image:<its id>
//!                         |--the engine wants the layers too: export, import--> the same, one layer
//!  snapshot with VOLUMEs (made by an older version) --the same--> its own name
//! ```
//!
//! The layers are the engine's already, so this takes no room and no time. The name appears in one
//! step, and the same image always leads to the same name: a crash leaves nothing half done.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::{ImageConfig, ImageInspect};
use bollard::query_parameters::{
    ImportImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};
use bytes::Bytes;
use serde_json::{Value, json};

use super::transfer::drain;
use crate::backend::BackendError;
use crate::backend::docker::client::{Engine, status};
use crate::backend::docker::flatten::{Target, flatten};
use crate::backend::docker::tarball;

const REPOSITORY: &str = "kohakuriver-plain/image";
/// The engine keeps an image's configuration in every container and sends it with every answer.
const LARGEST_CONFIG: usize = 256 << 10;

/// Refuses an image whose configuration is a burden.
pub fn vet(image: &ImageInspect, what: &str) -> Result<(), BackendError> {
    let bytes = serde_json::to_vec(&image.config).map_or(0, |text| text.len());
    if bytes <= LARGEST_CONFIG {
        return Ok(());
    }
    Err(BackendError::ImageUnavailable {
        what: format!("{what} cannot be used"),
        reason: format!("its configuration has {bytes} bytes, {LARGEST_CONFIG} are allowed"),
        hint: "build it with fewer or shorter variables and labels".to_owned(),
    })
}

pub fn is_plain(image: &ImageInspect) -> bool {
    image.config.as_ref().and_then(|config| config.volumes.as_ref()).is_none_or(Vec::is_empty)
}

/// Returns the name of an image without VOLUMEs.
pub fn name_of(id: &str) -> Target {
    let tag = id.trim_start_matches("sha256:").to_owned();
    let helper = format!("kohakuriver-flatten-{tag}");
    Target { repository: REPOSITORY.to_owned(), tag, helper }
}

/// Makes `target` from an image with VOLUMEs and answers its id.
pub async fn make(
    engine: &Engine,
    image: &ImageInspect,
    target: &Target,
) -> Result<String, BackendError> {
    let docker = engine.patient().await?;
    let layers = image.root_fs.as_ref().and_then(|root| root.layers.clone()).unwrap_or_default();
    let archive = archive(image, &layers, target);
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let body = bollard::body_full(Bytes::from(archive));
    let loaded = drain(docker.import_image(options, body, None)).await;
    let made = inspect(engine, &docker, &target.reference()).await?;
    let is_whole = |made: &ImageInspect| {
        is_plain(made)
            && made.root_fs.as_ref().and_then(|root| root.layers.as_ref()) == Some(&layers)
    };
    if let Some(id) = made.filter(is_whole).and_then(|made| made.id) {
        return Ok(id);
    }
    tracing::info!(?loaded, "the engine does not load a configuration alone: copying the image");
    let id = image.id.as_deref().unwrap_or_default();
    flatten(engine, &docker, id, target, &labels(image), image.comment.as_deref()).await?;
    let made = inspect(engine, &docker, &target.reference()).await?;
    made.filter(is_plain).and_then(|made| made.id).ok_or_else(|| BackendError::ImageUnavailable {
        what: "the image's VOLUMEs cannot be made part of the disk".to_owned(),
        reason: "the engine created no image without them".to_owned(),
        hint: "use an image without VOLUME".to_owned(),
    })
}

/// Removes those whose image is gone and that nothing is built on.
pub async fn sweep(engine: &Engine) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let filters = HashMap::from([("reference".to_owned(), vec![REPOSITORY.to_owned()])]);
    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    let images = docker.list_images(Some(options)).await.map_err(|error| engine.failure(error))?;
    for name in images.iter().flat_map(|image| &image.repo_tags) {
        let Some(of) = name.strip_prefix(REPOSITORY).and_then(|tag| tag.strip_prefix(':')) else {
            continue;
        };
        if inspect(engine, &docker, &format!("sha256:{of}")).await?.is_none() {
            let options = RemoveImageOptionsBuilder::default().build();
            // Refused where a container or a snapshot is built on it, which is as it should be.
            let _ = docker.remove_image(name, Some(options), None).await;
        }
    }
    Ok(())
}

async fn inspect(
    engine: &Engine,
    docker: &Docker,
    name: &str,
) -> Result<Option<ImageInspect>, BackendError> {
    match docker.inspect_image(name).await {
        Ok(image) => Ok(Some(image)),
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(engine.failure(error)),
    }
}

/// Builds the archive that `docker save` writes, without the layers.
fn archive(image: &ImageInspect, layers: &[String], target: &Target) -> Vec<u8> {
    let config = ImageConfig { volumes: None, ..image.config.clone().unwrap_or_default() };
    // One line for each layer: sizes of layers are read by it.
    let history: Vec<Value> = layers.iter().map(|_| json!({"created_by": "kohakuriver"})).collect();
    let mut about = json!({
        "architecture": image.architecture,
        "os": image.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": history,
        "comment": image.comment,
    });
    let created = serde_json::to_value(&image.created).unwrap_or_default();
    for (name, value) in [("created", created), ("variant", json!(image.variant))] {
        if !value.is_null() && value != "" {
            about[name] = value;
        }
    }
    let absent: Vec<String> = (0..layers.len()).map(|at| format!("{at}/layer.tar")).collect();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": [target.reference()], "Layers": absent}]);
    let (about, manifest) = (about.to_string(), manifest.to_string());
    tarball::pack(&[("config.json", about.as_bytes()), ("manifest.json", manifest.as_bytes())])
}

fn labels(image: &ImageInspect) -> HashMap<String, String> {
    image.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bollard::models::ImageInspectRootFs;

    use super::*;

    fn image() -> ImageInspect {
        ImageInspect {
            id: Some(format!("sha256:{}", "0a".repeat(32))),
            architecture: Some("amd64".to_owned()),
            os: Some("linux".to_owned()),
            config: Some(ImageConfig {
                env: Some(vec!["A=b".to_owned()]),
                volumes: Some(vec!["/data".to_owned()]),
                ..ImageConfig::default()
            }),
            root_fs: Some(ImageInspectRootFs {
                typ: "layers".to_owned(),
                layers: Some(vec!["sha256:1".to_owned(), "sha256:2".to_owned()]),
            }),
            ..ImageInspect::default()
        }
    }

    #[test]
    fn archive_has_everything_but_volumes_and_layers() {
        let image = image();
        let target = name_of(image.id.as_deref().unwrap());
        let layers = image.root_fs.clone().unwrap().layers.unwrap();
        let text = String::from_utf8_lossy(&archive(&image, &layers, &target)).into_owned();
        assert!(!is_plain(&image) && !text.contains("Volumes") && !text.contains("/data"));
        for part in ["A=b", "\"diff_ids\":[\"sha256:1\",\"sha256:2\"]", &target.reference()] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn configuration_without_measure_is_refused() {
        let mut large = image();
        vet(&large, "x:1").unwrap();
        large.config.as_mut().unwrap().env = Some(vec!["A=".to_owned() + &"b".repeat(300_000)]);
        assert!(vet(&large, "x:1").unwrap_err().to_string().contains("x:1 cannot be used"));
    }
}
