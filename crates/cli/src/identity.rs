//! The caller's name as this machine knows it, for the list of events; it proves nothing.

use kohakuriver_net::passwd;
use nix::unistd::{Uid, gethostname};

/// The longest name that the host accepts.
const LONGEST: usize = 64;

/// Returns the user's name on this machine.
pub fn login() -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    set("USER")
        .or_else(|| set("LOGNAME"))
        .or_else(|| passwd::account_of(Uid::current().as_raw()).map(|account| account.name))
}

/// Returns a user's name on this machine, or the number.
pub fn name_of(user: u32) -> String {
    passwd::account_of(user).map_or_else(|| user.to_string(), |account| account.name)
}

/// Returns this machine's host name.
pub fn machine() -> String {
    let name = gethostname().ok().and_then(|name| name.into_string().ok());
    printable(name.as_deref().unwrap_or("unknown"))
}

/// Returns `login@machine` as a valid header value.
pub fn asker() -> String {
    let login = login().unwrap_or_else(|| Uid::current().to_string());
    printable(&format!("{login}@{}", machine()))
}

fn printable(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_valid_for_every_host_name() {
        assert_eq!(printable("jo@gpu-01"), "jo@gpu-01");
        assert_eq!(printable("j\u{f6}rg x\r\n@h"), "jrgx@h");
        assert_eq!(printable(&"a".repeat(99)).len(), 64);
        assert!(asker().contains('@'));
    }
}
