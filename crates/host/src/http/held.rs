//! Bounds every request while it is in progress: how many a caller has, how slowly its body may
//! arrive, and that it ends when its caller loses the right to it.
//!
//! ```text
//!  counted -> registered -> handler -> response, whose body is streamed under the same right
//!     \ too many     \ right gone: revoked, within GRACE
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::error::ApiError;
use crate::access::routes::{Life, Row, Rule};
use crate::access::{Caller, Principal, still_has_role};
use crate::host::App;
use crate::limits::{Full, Holder, Limit, Permit};
use crate::sessions::registry::{Guard, Right};
use crate::slots::Slot;

/// Requests in progress of all callers and of one account, long polls and uploads included.
const MAX_REQUESTS: usize = 2048;
const MAX_OF_ONE: usize = 256;
/// The same without a login: of all, and of one network.
const MAX_OF_STRANGERS: usize = 512;
const MAX_OF_ONE_STRANGER: usize = 64;

/// A request that changes its caller's own rights, such as a log-out, still gets its response.
const GRACE: Duration = Duration::from_secs(3);
/// For responses from what the host knows.
const BRIEF_LIMIT: Duration = Duration::from_secs(60);
/// Bytes per second of a body that the host reads whole, beyond its first seconds.
const LEAST_RATE: u32 = 16 * 1024;
/// Generous: an upload comes from a program that may pause.
const UPLOAD_PAUSE: Duration = Duration::from_secs(600);
/// Maximum body of a request without a login, in bytes.
const STRANGERS_BODY: u64 = 64 * 1024;

/// The requests in progress.
#[derive(Debug)]
pub struct Requests {
    known: Limit,
    strangers: Limit,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            known: Limit::new(MAX_REQUESTS, MAX_OF_ONE),
            strangers: Limit::new(MAX_OF_STRANGERS, MAX_OF_ONE_STRANGER),
        }
    }
}

impl Requests {
    /// Returns a number that changes with every request.
    pub fn turns(&self) -> u64 {
        self.known.turns() + self.strangers.turns()
    }

    fn take(&self, caller: &Caller) -> Result<Permit, ApiError> {
        let limit =
            if caller.principal == Principal::Anonymous { &self.strangers } else { &self.known };
        limit.take(Holder::of(caller)).map_err(too_many)
    }
}

/// The connection of a request, as an extension.
#[derive(Clone, Debug)]
pub struct Connection {
    pub slot: Arc<Slot>,
    /// Whether it transports requests of many clients.
    pub shared: bool,
}

/// Runs the handler of a request that its caller may send. `changes` are account changes since
/// before the caller was looked up.
pub async fn answer(
    app: &App,
    caller: &Caller,
    row: &Row,
    changes: &watch::Receiver<u64>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let permit = match admit(app, caller, row, &request) {
        Ok(permit) => permit,
        Err(error) => return closing(error),
    };
    let guard = match register(app, caller, row, changes).await {
        Ok(guard) => guard,
        Err(error) => return error.into_response(),
    };
    let fault = Arc::new(AtomicU8::new(0));
    let pace = Pace::of(app, caller, row);
    request = request.map(|body| Body::new(PacedBody::new(body, pace, fault.clone())));
    request.extensions_mut().insert(caller.clone());
    let work = async {
        if row.life == Life::Brief {
            timeout(BRIEF_LIMIT, next.run(request)).await.unwrap_or_else(|_| slow().into_response())
        } else {
            next.run(request).await
        }
    };
    let response = tokio::select! {
        response = work => response,
        () = revoked(guard.as_ref(), began) => return closing(no_right()),
    };
    match fault.load(Ordering::Relaxed) {
        SLOW => return closing(slow_body()),
        LARGE => return closing(large_body()),
        _ => {}
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Only these rows are known to end with their right.
        let allowed = row.life == Life::Stream;
        return if allowed { response } else { ApiError::no_policy().into_response() };
    }
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::new(HeldBody::new(body, guard, began, permit)))
}

/// Counts the request and its connection for its caller.
fn admit(
    app: &App,
    caller: &Caller,
    row: &Row,
    request: &Request,
) -> Result<Option<Permit>, ApiError> {
    if let Some(connection) = request.extensions().get::<Connection>()
        && caller.principal != Principal::Anonymous
    {
        let holder = if connection.shared { Holder::Here } else { Holder::of(caller) };
        connection.slot.know(holder).map_err(too_many)?;
    }
    // Always answered, whatever the load.
    if row.path == "/api/health" {
        return Ok(None);
    }
    app.requests.take(caller).map(Some)
}

/// Registers an account's request. Its right was checked before, so a change since then is checked
/// once more.
async fn register(
    app: &App,
    caller: &Caller,
    row: &Row,
    changes: &watch::Receiver<u64>,
) -> Result<Option<Guard>, ApiError> {
    if caller.account().is_none() || row.rule == Rule::Public {
        return Ok(None);
    }
    let role = row.least_role();
    let wish = if let Rule::Instance(wish) = row.rule { Some(wish) } else { None };
    let guard = app.sessions.register(caller, Right::Ask { role, permission: wish });
    if changes.has_changed().unwrap_or(true) && !still_has_role(app, caller, role).await {
        return Err(ApiError::log_in());
    }
    Ok(Some(guard))
}

async fn revoked(guard: Option<&Guard>, began: Instant) {
    match guard {
        Some(guard) => {
            guard.revoked().await;
            sleep_until(began + GRACE).await;
        }
        None => std::future::pending().await,
    }
}

/// Closes the connection with the error: unread bytes of the request may be left on it.
fn closing(error: ApiError) -> Response {
    let mut response = error.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn no_right() -> ApiError {
    let detail = "permission for this request was revoked while it was in progress";
    ApiError::new(StatusCode::FORBIDDEN, "revoked", detail).hint("kohakuriver auth whoami")
}

fn slow() -> ApiError {
    let detail = format!("the host could not answer within {} s", BRIEF_LIMIT.as_secs());
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "slow", detail).hint("try again")
}

fn slow_body() -> ApiError {
    let detail = "the request's body arrived too slowly";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow_body", detail).hint("send it again")
}

fn large_body() -> ApiError {
    let detail = format!("the request's body is longer than {STRANGERS_BODY} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

pub fn too_many(full: Full) -> ApiError {
    match full {
        Full::Holder => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            "you have too many requests in progress",
        )
        .hint("wait for some to finish, or close unused ones"),
        Full::All => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "the host has too many requests in progress",
        )
        .hint("try again later"),
    }
}

/// The limits of a body's rate and length.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Until its first byte, and between chunks of an upload.
    patience: Duration,
    /// An upload of any length, by a caller whose right is watched.
    upload: bool,
    longest: Option<u64>,
}

impl Pace {
    fn of(app: &App, caller: &Caller, row: &Row) -> Self {
        let stranger = caller.principal == Principal::Anonymous;
        let upload = row.life == Life::Upload;
        let patience = if upload { UPLOAD_PAUSE } else { app.config.deadlines.request_body };
        Self { patience, upload, longest: stranger.then_some(STRANGERS_BODY) }
    }

    fn deadline(&self, began: Instant, received: u64) -> Instant {
        if self.upload {
            return Instant::now() + self.patience;
        }
        let seconds = u32::try_from(received / u64::from(LEAST_RATE)).unwrap_or(u32::MAX);
        began + self.patience + Duration::from_secs(seconds.into())
    }
}

/// The fault of a request body, read when the response is chosen.
const SLOW: u8 = 1;
const LARGE: u8 = 2;

/// A body that fails when it arrives too slowly or is too long.
struct PacedBody {
    body: Body,
    pace: Pace,
    began: Instant,
    received: u64,
    timer: Pin<Box<Sleep>>,
    fault: Arc<AtomicU8>,
}

impl PacedBody {
    fn new(body: Body, pace: Pace, fault: Arc<AtomicU8>) -> Self {
        let began = Instant::now();
        let timer = Box::pin(sleep_until(pace.deadline(began, 0)));
        Self { body, pace, began, received: 0, timer, fault }
    }

    fn fail(&self, fault: u8) -> axum::Error {
        self.fault.store(fault, Ordering::Relaxed);
        axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut))
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.pace.longest.is_some_and(|longest| self.received > longest) {
                    return Poll::Ready(Some(Err(self.fail(LARGE))));
                }
                let deadline = self.pace.deadline(self.began, self.received);
                self.timer.as_mut().reset(deadline);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending if self.timer.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Some(Err(self.fail(SLOW))))
            }
            other @ (Poll::Ready(_) | Poll::Pending) => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response that is produced while it is sent. It is aborted when its caller loses the right to
/// it.
struct HeldBody {
    body: Body,
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
    _permit: Option<Permit>,
}

impl HeldBody {
    fn new(body: Body, guard: Option<Guard>, began: Instant, permit: Option<Permit>) -> Self {
        let revoked = Box::pin(async move { revoked(guard.as_ref(), began).await });
        Self { body, revoked, _permit: permit }
    }
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.revoked.as_mut().poll(cx).is_ready() {
            let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Poll::Ready(Some(Err(axum::Error::new(error))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
