//! The link between host and runners: one TLS port on the host, dialled by the runners only.
//!
//! ```text
//!  ALPN kr-enroll/1   a machine with a join token gets its certificate       ([`enroll`])
//!  ALPN kr-ctl/1      one long-lived control connection per runner           ([`protocol`])
//!  ALPN kr-data/1     one connection per stream, dialled ahead into a pool   ([`protocol::StreamOpen`])
//! ```
//!
//! Both ends speak TLS 1.3 and, except for enrolment, show certificates of the host's own CA
//! ([`pki`]). A certificate names its node; a node cannot speak for another.

pub mod backoff;
pub mod client;
pub mod enroll;
pub mod frame;
pub mod liveness;
pub mod pki;
pub mod protocol;
pub mod tls;
pub mod token;
