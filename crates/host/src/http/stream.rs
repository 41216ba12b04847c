//! A raw stream into an instance: the connection of an HTTP request becomes the stream.
//!
//! One connection transports one stream, so half-closes, back-pressure and full speed are TCP's
//! own, and clients never share state. `kohakuriver-agent-protocol` defines the bytes on it.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use kohakuriver_api::ErrorBody;
use kohakuriver_net::relay;
use kohakuriver_runner_link::protocol::StreamTarget;
use serde::Deserialize;
use tokio::net::TcpStream;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::write_deadline::WriteDeadline;
use crate::access::Caller;
use crate::host::App;
use crate::sessions::open::{OpenSession, open_session};
use crate::sessions::streams::{InstanceStream, relay_tcp};

/// The stream that a client requests.
const PROTOCOL: &str = "kohakuriver-stream";

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(open_stream))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// `ssh`, `tcp`, `udp`, `exec`, `attach`, `session`, `files`, `watch` or `ping`.
    target: String,
    /// Of `tcp` and `udp`: a port on the instance's loopback.
    port: Option<u16>,
}

impl StreamQuery {
    fn target(&self) -> Result<StreamTarget, ApiError> {
        let port = || {
            self.port.filter(|port| *port != 0).ok_or_else(|| {
                let detail = format!("the target {} needs a port from 1 to 65535", self.target);
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", detail)
            })
        };
        Ok(match self.target.as_str() {
            "ssh" => StreamTarget::Ssh,
            "tcp" => StreamTarget::Tcp { port: port()? },
            "udp" => StreamTarget::Udp { port: port()? },
            "exec" => StreamTarget::Exec,
            "attach" => StreamTarget::Attach,
            "session" => StreamTarget::Session,
            "files" => StreamTarget::Files,
            "watch" => StreamTarget::Watch,
            "ping" => StreamTarget::Ping,
            other => {
                let detail = format!("'{other}' is not a target");
                return Err(ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "invalid_query",
                    detail,
                )
                .hint("use ssh, tcp, udp, exec, attach, session, files, watch or ping"));
            }
        })
    }
}

/// Turns the connection into a stream into a VPS. The request must ask to upgrade to
/// `kohakuriver-stream`; after the response 101 the bytes are the target's.
#[utoipa::path(get, path = "/api/vps/{task}/stream", tag = "streams", params(StreamQuery, ("task" = String, Path)),
    responses((status = 101), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 426, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn open_stream(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    query: Result<Query<StreamQuery>, QueryRejection>,
    caller: Caller,
    mut request: Request,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let target = query.target()?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let wanted = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    let (Some(upgrade), true) = (upgrade, wanted.is_some_and(|w| w.eq_ignore_ascii_case(PROTOCOL)))
    else {
        let detail = format!("the request lacks the header Upgrade: {PROTOCOL}");
        return Err(ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail));
    };
    let OpenSession { stream, guard } = open_session(&app, &caller, &text, target).await?;
    let tasks = app.tasks.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = app.shutdown.cancelled() => {}
            _ = guard.during(join(upgrade, stream)) => {}
        }
    });
    let headers = [
        (CONNECTION, HeaderValue::from_static("upgrade")),
        (UPGRADE, HeaderValue::from_static(PROTOCOL)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn join(upgrade: OnUpgrade, stream: InstanceStream) {
    let relayed = match upgrade.await {
        Ok(upgraded) => match upgraded.downcast::<TokioIo<WriteDeadline<TcpStream>>>() {
            Ok(parts) => {
                let client = parts.io.into_inner().into_inner();
                relay_tcp(stream, client, &parts.read_buf).await
            }
            Err(upgraded) => relay(TokioIo::<Upgraded>::new(upgraded), stream).await,
        },
        Err(error) => return tracing::debug!(%error, "connection upgrade failed"),
    };
    if let Err(error) = relayed {
        tracing::debug!(%error, "stream failed");
    }
}
