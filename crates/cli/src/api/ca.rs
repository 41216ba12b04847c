//! Getting to know a host that has a CA of its own: what logging in by https begins with.

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
    /// Why this machine does not believe the host, where a person may vouch for it: nobody known
    /// has signed its certificate, or somebody else than before. `None` where it is believed, and
    /// where no TLS is spoken.
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

    /// The CA that vouches for the host, as the host itself says it, with its fingerprint. What
    /// the connection showed is checked to be that CA's word; whether the CA is the right one
    /// nobody but the person can know.
    pub async fn fetch_ca(&self) -> Result<CaCertificate, CommandError> {
        let tls = self.tls(trust::looking()?)?;
        let address = self.find_address().await?;
        let connection = match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(|error| self.not_reached(&plain(&error)))?,
            Err(_) => return Err(self.not_reached("it did not answer in time")),
        };
        let stream = self.shake_hands(&tls, connection).await?;
        let asking = timeout(ANSWER_LIMIT, self.ask_for_ca(TokioIo::new(stream)));
        let slow = || self.not_reached("it did not answer in time");
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

    /// Believes this CA from now on. The answer is a way to the host that does.
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
