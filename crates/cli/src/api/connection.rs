//! A connection to the host, with TLS where the host requires it.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::{Api, CONNECT_LIMIT, Way, plain};
use crate::error::CommandError;
use crate::trust::RecordingVerifier;

/// A plain or a TLS connection.
pub type Connection = Either<TcpStream, TlsStream<TcpStream>>;

/// The TLS parameters of the host.
#[derive(Debug)]
pub struct Tls {
    pub config: Arc<ClientConfig>,
    pub witness: Arc<RecordingVerifier>,
    pub name: ServerName<'static>,
}

impl Api {
    /// Opens a connection to the host, and returns the client that was used.
    pub(super) async fn connect(&self) -> Result<(Connection, &Way), CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        let connected = match timeout(CONNECT_LIMIT, TcpStream::connect(way.address)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no response in time")),
        };
        let connection = connected.map_err(|error| self.not_reached(&plain(&error)))?;
        let _ = connection.set_nodelay(true);
        // A laptop that slept must not keep a dead connection for hours.
        let _ =
            nix::sys::socket::setsockopt(&connection, nix::sys::socket::sockopt::KeepAlive, &true);
        match &way.tls {
            None => Ok((Either::Left(connection), way)),
            Some(tls) => Ok((Either::Right(self.shake_hands(tls, connection).await?), way)),
        }
    }

    pub(super) async fn shake_hands(
        &self,
        tls: &Tls,
        connection: TcpStream,
    ) -> Result<TlsStream<TcpStream>, CommandError> {
        let connector = TlsConnector::from(tls.config.clone());
        match timeout(CONNECT_LIMIT, connector.connect(tls.name.clone(), connection)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(match tls_error(&error) {
                Some(cause) => tls.witness.explain(cause, &self.url()),
                None => self.not_reached(&plain(&error)),
            }),
            Err(_) => Err(self.not_reached("no response in time")),
        }
    }

    pub(super) fn tls(
        &self,
        (config, witness): (Arc<ClientConfig>, Arc<RecordingVerifier>),
    ) -> Result<Tls, CommandError> {
        let text = self.address.as_str();
        let name = ServerName::try_from(text.to_owned()).map_err(|_| {
            CommandError::usage(format!("no certificate can be for the name '{text}'"))
        })?;
        Ok(Tls { config, witness, name })
    }
}

/// Finds the TLS error in a chain of causes.
pub fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An IO error calls its inner error's cause its own, and so skips the inner one.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}
