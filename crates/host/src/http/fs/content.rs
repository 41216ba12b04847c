//! Small files as JSON, for pages and existing clients.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::StreamExt;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use kohakuriver_agent_protocol::files::{Ask, CHUNK, FilesInput, FilesOutput, Word, Write};
use kohakuriver_api::{ErrorBody, FsContent, FsWrite, FsWritten};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::error::ApiError;
use super::{convert, held_json, in_time, open, refused, with_files};
use crate::access::Caller;
use crate::files::{Files, Held};
use crate::host::App;
use crate::limits::Holder;

const MAX_READ: u64 = 10 * 1024 * 1024;
const MAX_WRITE: usize = 50 * 1024 * 1024;
/// The longest body: content as base64, or as text with few escapes, and the fields around it.
const MAX_BODY: usize = MAX_WRITE / 3 * 4 + 4 * 1024 * 1024;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(read_file)).routes(routes!(write_file))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Base64,
}

impl Encoding {
    fn parse(word: &str) -> Result<Self, ApiError> {
        match word {
            "utf-8" => Ok(Self::Utf8),
            "base64" => Ok(Self::Base64),
            other => {
                let detail = format!("'{other}' is not an encoding");
                Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
                    .hint("use utf-8 or base64"))
            }
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ReadQuery {
    path: String,
    /// `utf-8`, with invalid bytes replaced, or `base64`.
    #[serde(default = "utf8")]
    encoding: String,
    /// The maximum number of bytes; never more than 10485760.
    #[serde(default = "max_read")]
    limit: u64,
}

fn utf8() -> String {
    "utf-8".to_owned()
}

fn max_read() -> u64 {
    MAX_READ
}

/// Returns the content of a small file, or the beginning of a larger one.
#[utoipa::path(get, path = "/api/fs/{task}/read", tag = "files", params(ReadQuery, ("task" = String, Path)),
    responses((status = 200, body = FsContent), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody), (status = 502, body = ErrorBody)))]
async fn read_file(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<ReadQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(ReadQuery { path, encoding, limit }) = query?;
    let path = convert::normal(&path)?;
    let how = Encoding::parse(&encoding)?;
    let limit = limit.min(MAX_READ);
    let asked = Word::from(path.as_str());
    let (Held { value: bytes, memory }, size) =
        with_files(&app, &caller, &text, async |files| files.read(asked, limit).await).await?;
    let truncated = size > bytes.len() as u64;
    let content = match how {
        Encoding::Utf8 => String::from_utf8_lossy(&bytes).into_owned(),
        Encoding::Base64 => BASE64.encode(&bytes),
    };
    drop(bytes);
    Ok(held_json(&FsContent { path, content, encoding, size, truncated }, memory))
}

/// [`FsWrite`] without a copy of its content.
#[derive(Deserialize)]
struct Body<'a> {
    path: String,
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(default = "utf8")]
    encoding: String,
    #[serde(default = "yes")]
    create_parents: bool,
}

fn yes() -> bool {
    true
}

/// Writes a small file atomically: a concurrent reader sees the old content or the new.
#[utoipa::path(post, path = "/api/fs/{task}/write", tag = "files", params(("task" = String, Path)), request_body = FsWrite,
    responses((status = 200, body = FsWritten), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 413, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn write_file(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    request: Request,
) -> Result<Json<FsWritten>, ApiError> {
    in_time(async {
        // The whole body is in memory, so its memory is reserved for the caller first.
        let length = request.headers().get(CONTENT_LENGTH).and_then(|text| text.to_str().ok());
        let length = length.and_then(|text| text.parse().ok()).unwrap_or(MAX_BODY);
        if length > MAX_BODY {
            return Err(too_large());
        }
        let _memory = app.bodies.of(Holder::of(&caller)).hold(2 * length).await;
        let body = read_body(request, length).await?;
        let body: Body<'_> = serde_json::from_slice(&body).map_err(|error| {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            ApiError::new(status, "invalid_body", format!("the body is invalid: {error}"))
        })?;
        let path = convert::normal(&body.path)?;
        let how = Encoding::parse(&body.encoding)?;
        let length = match how {
            Encoding::Utf8 => body.content.len(),
            Encoding::Base64 => body.content.len() / 4 * 3,
        };
        // Two bytes of base64 may be padding.
        if length > MAX_WRITE + 2 {
            return Err(too_large());
        }
        let mut files = open(&app, &caller, &text).await?;
        let order = Write {
            path: Word::from(path.as_str()),
            offset: 0,
            mode: None,
            mtime: None,
            size: None,
            create_parents: body.create_parents,
            resumable: false,
            durable: true,
        };
        let size = write(&mut files, order, &body.content, how).await?;
        Ok(Json(FsWritten { path, size, success: true }))
    })
    .await
}

/// Reads a whole body into one allocation; collecting pieces and joining them would hold it twice.
async fn read_body(request: Request, length: usize) -> Result<Vec<u8>, ApiError> {
    let mut body = Vec::with_capacity(length);
    let mut pieces = request.into_body().into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| too_large())?;
        if body.len() + piece.len() > MAX_BODY {
            return Err(too_large());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn too_large() -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "content is limited to 50 MiB")
        .hint("PUT /api/fs/{task}/raw takes files of any length")
}

async fn write(
    files: &mut Files,
    order: Write,
    content: &str,
    how: Encoding,
) -> Result<u64, ApiError> {
    let lost = |error: std::io::Error| refused(error.into());
    files.orders.ask(Ask::Write(order)).await.map_err(lost)?;
    // A multiple of four, so that each chunk of base64 decodes alone.
    for piece in content.as_bytes().chunks(CHUNK) {
        let data = match how {
            Encoding::Utf8 => Bytes::copy_from_slice(piece),
            // Nothing was written under the file's name; dropping the stream removes the temporary
            // file.
            Encoding::Base64 => Bytes::from(BASE64.decode(piece).map_err(|error| {
                let detail = format!("content is not base64: {error}");
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_base64", detail)
            })?),
        };
        files.orders.data(data).await.map_err(lost)?;
    }
    files.orders.send(&FilesInput::End).await.map_err(lost)?;
    files.orders.flush().await.map_err(lost)?;
    files.answers.next().await.and_then(FilesOutput::written).map_err(refused)
}
