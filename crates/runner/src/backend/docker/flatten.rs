//! Flattens an image's chain of layers into one, by export and import.

use std::collections::HashMap;

use bollard::Docker;
use bollard::body_try_stream;
use bollard::models::{ContainerCreateBody, ImageConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures_util::StreamExt;

use super::client::{Engine, status};
use super::create_body::LABEL_MANAGED;
use super::image::drain;
use crate::backend::BackendError;

/// The name that the flat image takes, once it is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub repository: String,
    pub tag: String,
    /// The container that is never started, from which the disk is read.
    pub helper: String,
}

impl Target {
    pub fn reference(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }
}

/// Makes `target` from an image. Its variables are kept, VOLUMEs are not.
pub async fn flatten(
    engine: &Engine,
    docker: &Docker,
    image: &str,
    target: &Target,
    labels: &HashMap<String, String>,
    message: Option<&str>,
) -> Result<(), BackendError> {
    let failed = |error| engine.refused("flatten", error);
    let inspected = docker.inspect_image(image).await.map_err(failed)?;
    remove_helper(engine, docker, &target.helper).await?;
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        // Never started; the engine wants something to start all the same.
        cmd: Some(vec!["none".to_owned()]),
        labels: Some(HashMap::from([(LABEL_MANAGED.to_owned(), "false".to_owned())])),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::default().name(&target.helper).build();
    docker.create_container(Some(options), body).await.map_err(failed)?;
    let lines =
        labels.iter().map(|(name, value)| format!("LABEL {}={}", quoted(name), quoted(value)));
    let mut changes: Vec<String> = lines.collect();
    changes.extend(inspected.config.iter().flat_map(environment));
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(&target.repository)
        .tag(&target.tag)
        .message(message.unwrap_or_default())
        .changes(changes)
        .build();
    let disk =
        docker.export_container(&target.helper).map(|part| part.map_err(std::io::Error::other));
    let imported = docker.create_image(Some(options), Some(body_try_stream(disk)), None);
    let outcome = drain(imported).await.map(drop);
    remove_helper(engine, docker, &target.helper).await?;
    outcome.map_err(|reason| BackendError::Refused { by: "Docker", act: "flatten", reason })
}

/// Removes the helper container that a crash may have left.
pub async fn remove_helper(
    engine: &Engine,
    docker: &Docker,
    helper: &str,
) -> Result<(), BackendError> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match docker.remove_container(helper, Some(options)).await {
        Err(error) if status(&error) != Some(404) => Err(engine.refused("flatten", error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The image's variables, as lines of a Dockerfile; an import forgets them.
fn environment(config: &ImageConfig) -> Vec<String> {
    let lines = config.env.iter().flatten().filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        // A line break would begin another instruction.
        let is_line = !variable.contains(['\n', '\r']) && !name.contains(char::is_whitespace);
        is_line.then(|| format!("ENV {name}={}", quoted(value)))
    });
    lines.collect()
}

/// A value as a Dockerfile takes it.
pub fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for character in value.chars().filter(|character| !matches!(character, '\n' | '\r')) {
        if matches!(character, '"' | '\\' | '$') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_cannot_break_out_of_their_line() {
        let config = ImageConfig {
            env: Some(vec![
                "A=b \"c\" $d \\".to_owned(),
                "B=x\nRUN y".to_owned(),
                "C".to_owned(),
                "D\nRUN z=1".to_owned(),
            ]),
            ..ImageConfig::default()
        };
        assert_eq!(environment(&config), [r#"ENV A="b \"c\" \$d \\""#]);
    }
}
