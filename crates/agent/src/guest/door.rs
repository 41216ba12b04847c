//! The port of the guest that the runner comes in by.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_agent_protocol::GuestSecret;
use kohakuriver_agent_protocol::proof::admit_runner;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::serve::Agent;

const BIND_RETRY: Duration = Duration::from_secs(1);
/// The maximum of connections without a proof yet, each for as long as the proof may take. A new one
/// evicts the oldest, so a client that fills them all cannot block the runner for long.
const MOST_UNPROVEN: usize = 32;

/// Accepts connections for ever and serves those that prove to be the runner.
pub(crate) async fn serve(agent: Arc<Agent>, secret: GuestSecret, port: u16) {
    let listener = bind(port).await;
    tracing::info!(port, "waiting for the runner");
    let mut unproven: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        unproven.retain(|task| !task.is_finished());
        if unproven.len() >= MOST_UNPROVEN
            && let Some(oldest) = unproven.pop_front()
        {
            oldest.abort();
        }
        let (agent, secret) = (Arc::clone(&agent), secret.clone());
        let proving = tokio::spawn(async move {
            match admit_runner(&mut stream, &secret).await {
                Ok(()) => agent.admit(stream.into()),
                Err(error) => tracing::debug!(%error, "a connection was not the runner's"),
            }
        });
        unproven.push_back(proving.abort_handle());
    }
}

async fn bind(port: u16) -> TcpListener {
    let mut told = false;
    loop {
        match try_bind(port) {
            Ok(listener) => return listener,
            Err(error) if !told => {
                told = true;
                tracing::warn!(port, %error, "the runner's port cannot be had, trying again");
            }
            Err(_) => {}
        }
        sleep(BIND_RETRY).await;
    }
}

/// Any address: the guest may not have its own yet.
fn try_bind(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(128)
}
