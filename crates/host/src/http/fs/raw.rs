//! Files of any length as raw bytes: neither side holds more than a few chunks in memory.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use kohakuriver_agent_protocol::files::{
    Ask, ClientError, Entry, Failed, FilesInput, FilesOutput, Time, Word, Write,
};
use kohakuriver_api::{ErrorBody, FsWritten};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::error::ApiError;
use super::{convert, in_time, open, refused};
use crate::access::Caller;
use crate::files::Files;
use crate::host::App;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_raw, put_raw))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct GetQuery {
    path: String,
}

/// Returns the bytes of a file, or those of one `Range`.
#[utoipa::path(get, path = "/api/fs/{task}/raw", tag = "files", params(GetQuery, ("task" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"), (status = 206, content_type = "application/octet-stream"),
        (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 416, body = ErrorBody), (status = 502, body = ErrorBody)))]
async fn get_raw(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Path(text): Path<String>,
    query: Result<Query<GetQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(GetQuery { path }) = query?;
    let path = Word::from(convert::normal(&path)?.as_str());
    in_time(async {
        let mut files = open(&app, &caller, &text).await?;
        let stat = Ask::Stat { path: path.clone(), follow: true };
        let entry = files.find(stat).await.map_err(refused)?;
        let tag = tag(&entry);
        let same = headers.get(IF_RANGE).is_none_or(|wanted| wanted.as_bytes() == tag.as_bytes());
        let wanted = headers.get(RANGE).filter(|_| same).and_then(|range| range.to_str().ok());
        let (status, part) = match wanted.map_or(Wanted::All, |text| range(text, entry.size)) {
            Wanted::All => (StatusCode::OK, (0, entry.size)),
            Wanted::Part(from, to) => (StatusCode::PARTIAL_CONTENT, (from, to)),
            Wanted::Nothing => return Ok(beyond(entry.size)),
        };
        let limit = Some(part.1 - part.0);
        let ask = Ask::Read { path, offset: part.0, limit };
        let found = files.find(ask).await.map_err(refused)?;
        if (found.size, found.mtime) != (entry.size, entry.mtime) {
            let detail = "the file changed while it was read";
            return Err(ApiError::new(StatusCode::CONFLICT, "stale", detail).hint("try again"));
        }
        let mut answer = Body::from_stream(body(files, part.1 - part.0)).into_response();
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        // A browser must not render it as a page of this host.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(part.1 - part.0));
        headers.extend(HeaderValue::from_str(&tag).ok().map(|tag| (ETAG, tag)));
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {}-{}/{}", part.0, part.1.saturating_sub(1), entry.size);
            let range = HeaderValue::from_str(&range).ok();
            headers.extend(range.map(|range| (CONTENT_RANGE, range)));
        }
        Ok(answer)
    })
    .await
}

/// Returns a tag that changes with the file.
fn tag(entry: &Entry) -> String {
    let Time(seconds, nanoseconds) = entry.mtime;
    format!("\"{:x}-{seconds:x}-{nanoseconds:x}\"", entry.size)
}

fn beyond(size: u64) -> Response {
    let detail = format!("the file has {size} bytes");
    let error = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", detail);
    let mut answer = error.into_response();
    let range = HeaderValue::from_str(&format!("bytes */{size}")).ok();
    answer.headers_mut().extend(range.map(|range| (CONTENT_RANGE, range)));
    answer
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// Also for a header with several parts, or an invalid one.
    All,
    /// Start (inclusive) and end (exclusive).
    Part(u64, u64),
    Nothing,
}

/// Resolves a `Range` header for a file of `size` bytes.
fn range(text: &str, size: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Wanted::All;
    };
    let (from, to) = match (first.trim(), last.trim()) {
        ("", last) => match last.parse::<u64>() {
            Ok(count) => (size.saturating_sub(count), if count == 0 { 0 } else { size }),
            Err(_) => return Wanted::All,
        },
        (first, "") => match first.parse() {
            Ok(from) => (from, size),
            Err(_) => return Wanted::All,
        },
        (first, last) => match (first.parse(), last.parse::<u64>()) {
            (Ok(from), Ok(last)) if from <= last => (from, last.saturating_add(1).min(size)),
            _ => return Wanted::All,
        },
    };
    if from < to { Wanted::Part(from, to) } else { Wanted::Nothing }
}

/// The response's body. It fails where the file is shorter than announced, so that a client does
/// not take a part for the whole, and where it is longer.
fn body(files: Files, length: u64) -> impl futures_util::Stream<Item = Result<Bytes, ClientError>> {
    unfold(Some((files, length)), |state| async {
        let (mut files, left) = state?;
        match files.answers.next().await {
            Ok(FilesOutput::Data(data)) if data.is_empty() || data.len() as u64 > left => {
                Some((Err(ClientError::TooMuch), None))
            }
            Ok(FilesOutput::Data(data)) => {
                let left = left - data.len() as u64;
                Some((Ok(data), Some((files, left))))
            }
            Ok(FilesOutput::Done { .. }) if left == 0 => None,
            Ok(_) => Some((Err(ClientError::Unexpected), None)),
            Err(error) => Some((Err(error), None)),
        }
    })
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PutQuery {
    path: String,
    #[serde(default = "yes")]
    create_parents: bool,
    /// Permission bits, octal, for example 755. Default: those of the replaced file.
    mode: Option<String>,
}

fn yes() -> bool {
    true
}

/// Writes a file of any length atomically. Responds when it is on the VPS's disk.
#[utoipa::path(put, path = "/api/fs/{task}/raw", tag = "files", params(PutQuery, ("task" = String, Path)),
    request_body(content = String, content_type = "application/octet-stream", description = "The bytes of the file"),
    responses((status = 200, body = FsWritten), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn put_raw(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    caller: Caller,
    query: Result<Query<PutQuery>, QueryRejection>,
    request: Request,
) -> Result<Json<FsWritten>, ApiError> {
    let Query(query) = query?;
    let path = convert::normal(&query.path)?;
    let mode = query.mode.as_deref().map(permission_bits).transpose()?;
    let mut files = in_time(open(&app, &caller, &text)).await?;
    let order = Write {
        path: Word::from(path.as_str()),
        offset: 0,
        mode,
        mtime: None,
        size: None,
        create_parents: query.create_parents,
        resumable: false,
        durable: true,
    };
    let size = tokio::select! {
        written = write(&mut files, order, request.into_body().into_data_stream()) => written?,
        () = app.shutdown.cancelled() => {
            let detail = "the host is shutting down";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", detail));
        }
    };
    Ok(Json(FsWritten { path, size, success: true }))
}

fn permission_bits(text: &str) -> Result<u32, ApiError> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
        let detail = format!("'{text}' is not a file mode");
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", detail)
            .hint("write it in octal, for example 644")
    })
}

async fn write(files: &mut Files, order: Write, mut body: BodyDataStream) -> Result<u64, ApiError> {
    let Files { orders, answers, .. } = files;
    let lost = |error: std::io::Error| refused(error.into());
    orders.ask(Ask::Write(order)).await.map_err(lost)?;
    orders.flush().await.map_err(lost)?;
    loop {
        let piece = tokio::select! {
            piece = body.next() => piece,
            // Before the end the agent sends only errors.
            answer = answers.next() => {
                return Err(refused(answer.err().unwrap_or(ClientError::Unexpected)));
            }
        };
        match piece {
            Some(Ok(data)) => orders.data(data).await.map_err(lost)?,
            Some(Err(_)) => {
                let message = "the upload was interrupted; nothing was changed".to_owned();
                let failed =
                    Failed { code: kohakuriver_agent_protocol::files::Code::Aborted, message };
                return Err(refused(failed.into()));
            }
            None => break,
        }
    }
    orders.send(&FilesInput::End).await.map_err(lost)?;
    orders.flush().await.map_err(lost)?;
    answers.next().await.and_then(FilesOutput::written).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_header_is_parsed_as_in_rfc_9110() {
        assert_eq!(range("bytes=0-9", 100), Wanted::Part(0, 10));
        assert_eq!(range("bytes=90-", 100), Wanted::Part(90, 100));
        assert_eq!(range("bytes=-10", 100), Wanted::Part(90, 100));
        assert_eq!(range("bytes=-200", 100), Wanted::Part(0, 100));
        assert_eq!(range("bytes=90-500", 100), Wanted::Part(90, 100));
        for none in ["bytes=100-", "bytes=200-300", "bytes=-0"] {
            assert_eq!(range(none, 100), Wanted::Nothing, "{none}");
        }
        assert_eq!(range("bytes=0-", 0), Wanted::Nothing);
        for all in ["bytes=0-1,5-6", "lines=1-2", "bytes=9-1", "bytes=", "bytes=a-b", "bytes=-"] {
            assert_eq!(range(all, 100), Wanted::All, "{all}");
        }
    }
}
