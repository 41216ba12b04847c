//! Trust in a host with a CA of its own, which login by https establishes first.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kohakuriver_api::CaCertificate;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{ANSWER_LIMIT, Api, CONNECT_LIMIT, innermost, plain};
use crate::error::{CommandError, Kind};
use crate::trust;

/// A certificate and its fingerprint.
const LONGEST_ANSWER: usize = 64 * 1024;

impl Api {
    /// The reason why this machine does not trust the host, where the user may decide to: its
    /// certificate's signer is unknown or differs from before. `None` where the host is trusted,
    /// and without TLS.
    pub async fn doubt(&self) -> Result<Option<CommandError>, CommandError> {
        match self.connect().await {
            Ok(_) => Ok(None),
            Err(doubt) if doubt.kind == Kind::Distrusted => match self.fetch_ca().await {
                Ok(_) => Ok(Some(doubt)),
                // For a wrong name or time nobody can vouch.
                Err(_) => Err(doubt),
            },
            Err(failure) => Err(failure),
        }
    }

    /// Fetches the host's CA, as the host itself reports it, with its fingerprint. The chain of the
    /// connection is verified against that CA; only the user can decide whether it is the right CA.
    pub async fn fetch_ca(&self) -> Result<CaCertificate, CommandError> {
        let tls = self.tls(trust::looking()?)?;
        let address = self.find_address().await?;
        let connection = match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(|error| self.not_reached(&plain(&error)))?,
            Err(_) => return Err(self.not_reached("no response in time")),
        };
        let stream = self.shake_hands(&tls, connection).await?;
        let asking = timeout(ANSWER_LIMIT, self.ask_for_ca(TokioIo::new(stream)));
        let slow = || self.not_reached("no response in time");
        let mut answer = asking.await.unwrap_or_else(|_| Err(slow()))?;
        let chain = tls.witness.seen();
        // Computed here: what the host says of itself is not a fact.
        answer.fingerprint = trust::fingerprint_if_signed(&chain, &answer.ca_pem, &tls.name)
            .map_err(|error| {
                if !trust::is_of_the_issuer(&error) {
                    return tls.witness.explain(&error, &self.url());
                }
                CommandError::distrusted(format!(
                    "the CA that {} names has not signed the certificate it shows",
                    self.url()
                ))
                .hint("is there a proxy in between? ask the host's operator how to get there")
            })?;
        Ok(answer)
    }

    /// Trusts this CA from now on. Returns a client that does.
    pub fn pin(&self, ca_pem: &str) -> Result<Self, CommandError> {
        self.trust.pin(ca_pem)?;
        Ok(Self { way: Arc::default(), ..self.clone() })
    }

    async fn ask_for_ca<S>(&self, stream: TokioIo<S>) -> Result<CaCertificate, CommandError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: hyper::Error| self.not_reached(&innermost(&error));
        let (mut sender, driver) = http1::handshake(stream).await.map_err(broken)?;
        let driver = tokio::spawn(driver);
        let request = Request::get("/api/auth/ca")
            .header(HOST, self.place())
            .body(Empty::<Bytes>::new())
            .map_err(|error| CommandError::request(format!("cannot ask the host: {error}")))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        driver.abort();
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        match status {
            StatusCode::OK => self.read(status, &body),
            StatusCode::NOT_FOUND => Err(CommandError::distrusted(format!(
                "the certificate of {} is neither of a CA this machine trusts nor of the host's own",
                self.url()
            ))
            .hint("add its CA to the system's, or name it in SSL_CERT_FILE")),
            _ => Err(self.refusal(status, &body)),
        }
    }
}
