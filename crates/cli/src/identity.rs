//! Who asks, as far as this machine knows. A courtesy for the list of events, not a proof.

use kohakuriver_net::passwd;
use nix::unistd::{Uid, gethostname};

/// The longest the host takes.
const LONGEST: usize = 64;

/// The name of the person at this machine.
pub fn login() -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    set("USER")
        .or_else(|| set("LOGNAME"))
        .or_else(|| passwd::account_of(Uid::current().as_raw()).map(|account| account.name))
}

/// The name of a user of this machine, or the number.
pub fn name_of(user: u32) -> String {
    passwd::account_of(user).map_or_else(|| user.to_string(), |account| account.name)
}

/// What this machine calls itself.
pub fn machine() -> String {
    let name = gethostname().ok().and_then(|name| name.into_string().ok());
    printable(name.as_deref().unwrap_or("unknown"))
}

/// `login@machine`, fit for a header.
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
    fn whatever_a_machine_is_called_the_header_is_valid() {
        assert_eq!(printable("jo@gpu-01"), "jo@gpu-01");
        assert_eq!(printable("j\u{f6}rg x\r\n@h"), "jrgx@h");
        assert_eq!(printable(&"a".repeat(99)).len(), 64);
        assert!(asker().contains('@'));
    }
}
