//! Files into the engine: load, import, tag.

use std::path::Path;

use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptionsBuilder, TagImageOptionsBuilder,
};
use bollard::{Docker, body_try_stream};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use tokio_util::io::ReaderStream;

use super::BASE;
use super::progress::Throttle;
use crate::backend::docker::client::plain;
use crate::backend::docker::shared_job::Reporter;

pub type Body = BoxStream<'static, std::io::Result<Bytes>>;

/// The file as a request body that tells how much of it went.
pub async fn file_body(
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

pub async fn import(docker: &Docker, body: Body, repository: &str) -> Result<(), String> {
    const PATH: &str = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(repository)
        .tag(BASE)
        .changes(vec![PATH.to_owned()])
        .build();
    drain(docker.create_image(Some(options), Some(body_try_stream(body)), None)).await.map(drop)
}

pub async fn load_and_tag(docker: &Docker, body: Body, repository: &str) -> Result<(), String> {
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let said = drain(docker.import_image(options, body_try_stream(body), None)).await?;
    let loaded = said.iter().filter_map(|message| message.stream.as_deref()).find_map(|line| {
        line.trim().strip_prefix("Loaded image ID: ").or(line.trim().strip_prefix("Loaded image: "))
    });
    let Some(loaded) = loaded else {
        return Err("the tarball holds no image".to_owned());
    };
    tag(docker, loaded, repository).await.map_err(|error| plain(&error))
}

pub async fn tag(
    docker: &Docker,
    image: &str,
    repository: &str,
) -> Result<(), bollard::errors::Error> {
    let options = TagImageOptionsBuilder::default().repo(repository).tag(BASE).build();
    docker.tag_image(image, Some(options)).await
}

pub async fn drain<T>(
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
