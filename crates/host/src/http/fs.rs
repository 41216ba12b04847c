//! Files of a VPS: translates requests to the files protocol, which its agent answers.
//!
//! ```text
//!  list, stat, mkdir, rename, delete    here
//!  read, write                          in JSON, for small files     [content]
//!  raw                                  bytes of any length          [raw]
//!  /ws/fs/{task}/watch                  change notifications              [watch]
//! ```

mod content;
mod convert;
mod raw;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use kohakuriver_agent_protocol::files::{Ask, ClientError, Code, Failed, Word};
use kohakuriver_api::{ErrorBody, FsDone, FsList, FsMkdir, FsRename, FsRenamed, FsStat};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use crate::access::Caller;
use crate::files::{Files, Held};
use crate::host::App;
use crate::limits::HeldBytes;
use crate::sessions::open::OpenSessionError;

/// The time limit of a request, except for transfers of any length.
const LIMIT: Duration = Duration::from_secs(60);

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_files))
        .routes(routes!(stat_file))
        .routes(routes!(make_directory))
        .routes(routes!(rename_file))
        .routes(routes!(delete_file))
        .merge(content::routes())
        .merge(raw::routes())
}

/// Returns the routes that are not request and response.
pub fn sockets() -> Router<Arc<App>> {
    watch::routes()
}

/// Opens the files of a VPS and runs `work` on them, within the time of a request.
async fn with_files<T>(
    app: &App,
    caller: &Caller,
    text: &str,
    work: impl AsyncFnOnce(&mut Files) -> Result<T, ClientError>,
) -> Result<T, ApiError> {
    in_time(async {
        let mut files = open(app, caller, text).await?;
        work(&mut files).await.map_err(refused)
    })
    .await
}

async fn open(app: &App, caller: &Caller, text: &str) -> Result<Files, ApiError> {
    Files::open(app, caller, text).await.map_err(|error| match error {
        // Existing clients recognize this error by its status.
        OpenSessionError::NotRunning { .. } | OpenSessionError::Paused { .. } => {
            let answer = ApiError::new(StatusCode::BAD_REQUEST, "not_running", error.to_string());
            match error.hint() {
                Some(hint) => answer.hint(hint),
                None => answer,
            }
        }
        OpenSessionError::Instance(_)
        | OpenSessionError::NoSsh { .. }
        | OpenSessionError::TooMany
        | OpenSessionError::Full
        | OpenSessionError::Stream(_) => error.into(),
    })
}

async fn in_time<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| {
        let detail = format!("the VPS did not respond within {} s", LIMIT.as_secs());
        Err(ApiError::new(StatusCode::BAD_GATEWAY, "slow", detail))
    })
}

fn refused(error: ClientError) -> ApiError {
    let Failed { code, message } = match error {
        ClientError::Failed(failed) => failed,
        ClientError::TooMuch => {
            tracing::warn!("agent sent an oversized reply");
            return ApiError::new(
                StatusCode::BAD_GATEWAY,
                "invalid_response",
                "the VPS's agent sent an oversized reply; another process may have replaced it",
            )
            .hint("restart the VPS to restore the agent: kohakuriver vps restart");
        }
        ClientError::Stream(_) | ClientError::Ended | ClientError::Unexpected => {
            tracing::debug!(%error, "files stream failed");
            return ApiError::new(
                StatusCode::BAD_GATEWAY,
                "connection_lost",
                "the connection to the VPS was lost before the request completed",
            )
            .hint("check its state: kohakuriver vps status");
        }
    };
    let (status, word, hint) = match code {
        Code::NotFound => (StatusCode::NOT_FOUND, "not_found", None),
        Code::Denied => (StatusCode::FORBIDDEN, "denied", None),
        Code::Exists => (StatusCode::CONFLICT, "exists", None),
        Code::IsDirectory => (StatusCode::BAD_REQUEST, "is_directory", None),
        Code::NotDirectory => (StatusCode::BAD_REQUEST, "not_directory", None),
        Code::Forbidden => (StatusCode::BAD_REQUEST, "forbidden_path", None),
        Code::DiskFull => (
            StatusCode::INSUFFICIENT_STORAGE,
            "disk_full",
            Some("delete files in the VPS, or free disk space on its node"),
        ),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", None),
        Code::Invalid | Code::Aborted => (StatusCode::BAD_REQUEST, "invalid", None),
        Code::Stale => (StatusCode::CONFLICT, "stale", None),
        Code::Other => (StatusCode::INTERNAL_SERVER_ERROR, "failed", None),
    };
    let answer = ApiError::new(status, word, message);
    match hint {
        Some(hint) => answer.hint(hint),
        None => answer,
    }
}

/// Serializes a response that counts as its caller's memory until it has been sent.
fn held_json<T: serde::Serialize>(value: &T, memory: Vec<HeldBytes>) -> Response {
    // Structures of strings and numbers always serialize.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let bytes = Bytes::from_owner(HeldText { json, _memory: memory });
    ([(CONTENT_TYPE, "application/json")], Body::from(bytes)).into_response()
}

struct HeldText {
    json: Vec<u8>,
    _memory: Vec<HeldBytes>,
}

impl AsRef<[u8]> for HeldText {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    #[serde(default = "root")]
    path: String,
}

fn root() -> String {
    "/".to_owned()
}

/// Lists a directory: the first thousand entries by name, including those that begin with a dot.
#[utoipa::path(get, path = "/api/fs/{task}/list", tag = "files", params(ListQuery, ("task" = String, Path)),
    responses((status = 200, body = FsList), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list_files(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(ListQuery { path }) = query?;
    let path = convert::normal(&path)?;
    let asked = Word::from(path.as_str());
    let (entries, truncated) =
        with_files(&app, &caller, &text, async |files| files.list(asked).await).await?;
    let Held { value, memory } = entries;
    let entries = value.into_iter().map(|entry| convert::entry(&path, entry)).collect();
    let parent = std::path::Path::new(&path).parent();
    let parent = parent.map(|parent| parent.to_string_lossy().into_owned());
    Ok(held_json(&FsList { path, entries, parent, truncated }, memory))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PathQuery {
    path: String,
}

/// Returns the attributes of a path; of a symlink, those of the symlink itself.
#[utoipa::path(get, path = "/api/fs/{task}/stat", tag = "files", params(PathQuery, ("task" = String, Path)),
    responses((status = 200, body = FsStat), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn stat_file(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<PathQuery>, QueryRejection>,
) -> Result<Json<FsStat>, ApiError> {
    let Query(PathQuery { path }) = query?;
    let path = convert::normal(&path)?;
    let ask = Ask::Stat { path: Word::from(path.as_str()), follow: false };
    let entry = with_files(&app, &caller, &text, async |files| files.find(ask).await).await?;
    Ok(Json(convert::stat(path, &entry)))
}

/// Creates a directory.
#[utoipa::path(post, path = "/api/fs/{task}/mkdir", tag = "files", params(("task" = String, Path)), request_body = FsMkdir,
    responses((status = 200, body = FsDone), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn make_directory(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<FsMkdir>, JsonRejection>,
) -> Result<Json<FsDone>, ApiError> {
    let Json(FsMkdir { path, parents }) = body?;
    let path = convert::normal(&path)?;
    let ask = Ask::Mkdir { path: Word::from(path.as_str()), parents, mode: None };
    with_files(&app, &caller, &text, async |files| files.act(ask).await).await?;
    Ok(Json(FsDone { message: format!("Directory created: {path}"), path }))
}

/// Renames a file or directory within one disk.
#[utoipa::path(post, path = "/api/fs/{task}/rename", tag = "files", params(("task" = String, Path)), request_body = FsRename,
    responses((status = 200, body = FsRenamed), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn rename_file(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<FsRename>, JsonRejection>,
) -> Result<Json<FsRenamed>, ApiError> {
    let Json(FsRename { source, destination, overwrite }) = body?;
    let (source, destination) = (convert::normal(&source)?, convert::normal(&destination)?);
    let (from, to) = (Word::from(source.as_str()), Word::from(destination.as_str()));
    let ask = Ask::Rename { from, to, overwrite };
    with_files(&app, &caller, &text, async |files| files.act(ask).await).await?;
    let message = format!("Renamed: {source} to {destination}");
    Ok(Json(FsRenamed { message, source, destination }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DeleteQuery {
    path: String,
    /// Also a directory, with its content.
    #[serde(default)]
    recursive: bool,
}

/// Deletes a file; a missing file is not an error.
#[utoipa::path(delete, path = "/api/fs/{task}/delete", tag = "files", params(DeleteQuery, ("task" = String, Path)),
    responses((status = 200, body = FsDone), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn delete_file(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<DeleteQuery>, QueryRejection>,
) -> Result<Json<FsDone>, ApiError> {
    let Query(DeleteQuery { path, recursive }) = query?;
    let path = convert::normal(&path)?;
    let ask = Ask::Delete { path: Word::from(path.as_str()), recursive };
    with_files(&app, &caller, &text, async |files| files.act(ask).await).await?;
    Ok(Json(FsDone { message: format!("Deleted: {path}"), path }))
}
