//! The API's port: accepts connections and serves HTTP on each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::router;
use crate::host::App;

/// A client that takes longer to send its request's head is not one.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Connections at once; long-polling clients hold one each.
const MAX_CONNECTIONS: usize = 1024;

/// Accepts until told to stop, then lets open requests finish.
pub async fn serve(app: Arc<App>, listener: TcpListener, shutdown: CancellationToken) {
    let router = router(app.clone());
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                crate::host::accept_failed("API", &error).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        // Answers are small and somebody waits for each.
        let _: io::Result<()> = stream.set_nodelay(true);
        let (router, shutdown) = (router.clone(), shutdown.clone());
        app.tasks.spawn(async move {
            let service = TowerToHyperService::new(tower::service_fn(
                move |request: http::Request<Incoming>| {
                    tower::ServiceExt::oneshot(router.clone(), request.map(axum::body::Body::new))
                },
            ));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "an API connection ended early");
            }
            drop(slot);
        });
    }
}
