//! Selects one of a name's addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The delay before the next address is tried, as RFC 8305 advises.
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first address that accepts; each further address starts a little later.
pub async fn first_that_answers(
    addresses: &[SocketAddr],
    limit: Duration,
) -> io::Result<SocketAddr> {
    // With no choice, the request itself finds out.
    if let [only] = addresses {
        return Ok(*only);
    }
    let mut race = JoinSet::new();
    let mut start = Duration::ZERO;
    for address in addresses.iter().copied() {
        let wait = start;
        start += HEAD_START;
        race.spawn(async move {
            sleep(wait).await;
            match timeout(limit, TcpStream::connect(address)).await {
                Ok(connected) => connected.map(|_| address),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no response in time")),
            }
        });
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    while let Some(result) = race.join_next().await {
        match result {
            Ok(Ok(address)) => return Ok(address),
            Ok(Err(error)) => last = error,
            Err(panicked) => last = io::Error::other(panicked),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refusing_address_does_not_hide_a_working_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let gone = {
            let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            closed.local_addr().unwrap()
        };
        let limit = Duration::from_secs(5);
        assert_eq!(first_that_answers(&[gone, good], limit).await.unwrap(), good);
        let error = first_that_answers(&[gone, gone], limit).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
