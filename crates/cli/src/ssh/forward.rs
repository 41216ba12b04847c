//! `kohakuriver ssh VPS --local-port N`: a local port forwarded to the VPS's SSH.

use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};

use super::How;
use super::connect::reachable;
use super::proxy::Gate;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::vps::vocabulary::called;
use crate::wait;

pub async fn run(
    context: &Context,
    vps: &VpsRef,
    how: &How,
    port: u16,
) -> Result<(), CommandError> {
    let task = reachable(context, vps).await?;
    let gateway = how.proxy_port.unwrap_or(context.settings.ssh_proxy_port.value);
    let gate = Gate::new(context, gateway)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        CommandError::request(format!("port {port} of 127.0.0.1 cannot be used: {error}"))
            .hint("use another port, or 0 for any free one")
    })?;
    let port = listener.local_addr().map_or(port, |address| address.port());
    context.out.line(format!("127.0.0.1:{port}"));
    context.out.note(format!(
        "forwards to {}; in another terminal: ssh -p {port} {}@127.0.0.1 (Ctrl-C ends it)",
        called(&task),
        how.user
    ));
    let serve = async {
        loop {
            let (client, _) = listener
                .accept()
                .await
                .map_err(|error| CommandError::request(format!("cannot accept: {error}")))?;
            let (gate, id, out) = (gate.clone(), task.task_id.clone(), context.out);
            // Ends with the process, or when either side closes.
            tokio::spawn(async move {
                if let Err(failure) = carry(client, &gate, &id).await {
                    out.failure(&failure);
                }
            });
        }
    };
    // Ctrl-C is the normal end.
    let _: Result<(), CommandError> =
        wait::unless_interrupted(serve, || CommandError::interrupted("")).await;
    Ok(())
}

async fn carry(client: TcpStream, gate: &Gate, id: &str) -> Result<(), CommandError> {
    let server = gate.open(id).await?;
    let _ = client.set_nodelay(true);
    // ssh and the VPS report the end of a connection themselves.
    let _ = kohakuriver_net::relay(client, server).await;
    Ok(())
}
