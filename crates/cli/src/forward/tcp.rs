use std::sync::Arc;

use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_net::{relay, relay_sockets};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::either::Either;

use super::Way;

pub async fn serve(way: Arc<Way>, listener: TcpListener, remote: u16) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let way = Arc::clone(&way);
                tokio::spawn(async move { connect(&way, client, remote).await });
            }
            Err(error) => {
                way.out.note(format!("a connection was not accepted: {error}"));
                // Most likely out of descriptors, which are freed as other connections close.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connect(way: &Way, client: TcpStream, port: u16) {
    let _ = client.set_nodelay(true);
    let stream = match way.open(&StreamTarget::Tcp { port }).await {
        Ok(stream) => stream,
        Err(failure) => return way.complain(&failure),
    };
    let (host, early) = stream.into_parts();
    let mut client = client;
    if client.write_all(&early).await.is_ok() {
        // Both sides see the end of the connection themselves, so its error is not printed.
        let _ = match host {
            Either::Left(host) => relay_sockets(client, host).await,
            Either::Right(host) => relay(client, host).await,
        };
    }
}
