//! Who may do what: the only module that makes the proof which acting functions ask for.
//!
//! In this version authentication is off, everybody is the one user, and the host listens on
//! loopback only unless its operator said otherwise. What is checked here already is that a
//! request comes from a program of that user and not from a web page in their browser.

use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use kohakuriver_model::TaskId;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Authentication is off. `said`: who the program says it is run by; nobody has checked it.
    Anyone { said: Option<String> },
}

/// The name a program of ours gives for the person who runs it.
const USER_HEADER: &str = "x-kohakuriver-user";

impl Caller {
    /// From a request's headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let said = headers
            .get(USER_HEADER)
            .and_then(|value| value.to_str().ok())
            .filter(|name| !name.is_empty() && name.len() <= 64)
            .map(ToOwned::to_owned);
        Self::Anyone { said }
    }

    /// A way in that tells nothing of who uses it.
    pub fn unnamed() -> Self {
        Self::Anyone { said: None }
    }

    /// For the history of an instance.
    pub fn name(&self) -> String {
        match self {
            Self::Anyone { said } => said.clone().unwrap_or_else(|| "anonymous".to_owned()),
        }
    }
}

/// What somebody wants with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    See,
    Change,
    /// Get inside: SSH, terminals, forwards, files.
    Enter,
}

/// Proof that a caller may do something with one instance. Only [`authorize`] makes it.
#[derive(Debug)]
pub struct Authorized {
    task_id: TaskId,
    wish: Wish,
}

impl Authorized {
    pub fn task_id(&self) -> TaskId {
        self.task_id
    }

    pub fn wish(&self) -> Wish {
        self.wish
    }
}

/// The one decision. With authentication off everything is allowed.
pub fn authorize(caller: &Caller, wish: Wish, task_id: TaskId) -> Authorized {
    match caller {
        Caller::Anyone { .. } => Authorized { task_id, wish },
    }
}

/// Whether the request is from a web page of somebody else: one that names another origin, or
/// one that reaches us under a name that an attacker's DNS points at this machine. `names` are
/// this machine's own.
pub fn is_foreign_page(headers: &HeaderMap, names: &[String]) -> bool {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !is_ours(host, names) {
        return true;
    }
    match headers.get(ORIGIN).map(|value| value.to_str().unwrap_or("null")) {
        None => false,
        Some(origin) => origin.split_once("://").is_none_or(|(_, authority)| authority != host),
    }
}

/// A page can only name its own domain in `Host`, so an address, `localhost` and the names that
/// this machine has for itself are safe.
fn is_ours(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        is_foreign_page(&headers, &["river".to_owned()])
    }

    #[test]
    fn programs_and_our_own_page_pass() {
        assert!(!foreign("127.0.0.1:8000", None));
        assert!(!foreign("localhost:8000", Some("http://localhost:8000")));
        assert!(!foreign("[::1]:8000", None));
        assert!(!foreign("River:8000", Some("http://River:8000")));
    }

    #[test]
    fn other_peoples_pages_do_not_pass() {
        assert!(foreign("127.0.0.1:8000", Some("http://evil.example")));
        assert!(foreign("rebound.evil.example:8000", None));
        assert!(foreign("127.0.0.1:8000", Some("null")));
        assert!(foreign("localhost:8000", Some("http://localhost:3000")));
        assert!(foreign("river.evil.example", None));
    }
}
