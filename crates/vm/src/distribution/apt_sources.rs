//! The distribution's own package sources as this machine has them, so that its mirror is used.
//!
//! Third parties' sources are left out: only the files an installer writes are read, of them only
//! the suites of this release, and nothing that is signed by somebody else's key.

use std::fs;
use std::path::Path;

/// One source as `mmdebstrap` reads it from its input; empty where none fits.
pub fn own_sources(apt: &Path, suite: &str) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(apt.join(name)).unwrap_or_default();
    let mut sources: Vec<Source> = one_line(&read("sources.list"));
    for file in ["sources.list.d/debian.sources", "sources.list.d/ubuntu.sources"] {
        sources.extend(stanzas(&read(file)));
    }
    let mut lines: Vec<String> =
        sources.iter().filter_map(|source| source.line_for(suite)).collect();
    lines.dedup();
    lines
}

#[derive(Debug, Default)]
struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
    signed_by: Option<String>,
}

impl Source {
    fn line_for(&self, release: &str) -> Option<String> {
        let pocket = self.suite.strip_prefix(release)?;
        let of_release = ["", "-updates", "-security"].contains(&pocket);
        let plain = |text: &str| !text.contains(char::is_control) && !text.contains(['[', ']']);
        let key = match self.signed_by.as_deref() {
            None => String::new(),
            Some(key) => {
                let name = key.rsplit('/').next().unwrap_or_default();
                let own =
                    name.starts_with("debian-archive-") || name.starts_with("ubuntu-archive-");
                if !own || !key.starts_with('/') || !plain(key) {
                    return None;
                }
                format!(" [signed-by={key}]")
            }
        };
        let components: Vec<&str> = self
            .components
            .iter()
            .map(String::as_str)
            .filter(|component| ["main", "universe"].contains(component))
            .collect();
        let usable = of_release && !components.is_empty() && plain(&self.uri);
        usable.then(|| format!("deb{key} {} {} {}", self.uri, self.suite, components.join(" ")))
    }
}

/// `deb [options] uri suite component...`
fn one_line(text: &str) -> Vec<Source> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter_map(one_line_source).collect()
}

fn one_line_source(line: &str) -> Option<Source> {
    let rest = line.strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uri: words.next()?,
        suite: words.next()?,
        components: words.collect(),
        signed_by: signed_by.map(str::to_owned),
    })
}

/// Paragraphs of `Field: value`, one source for each address and suite.
fn stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    for stanza in text.split("\n\n") {
        let words = |name: &str| -> Vec<String> {
            let mut inside = false;
            let mut words = Vec::new();
            for line in stanza.lines() {
                let continued = line.starts_with([' ', '\t']);
                let value = match line.split_once(':') {
                    _ if continued => inside.then_some(line),
                    Some((field, value)) => {
                        inside = field.eq_ignore_ascii_case(name);
                        inside.then_some(value)
                    }
                    None => None,
                };
                words.extend(value.unwrap_or_default().split_whitespace().map(str::to_owned));
            }
            words
        };
        let off = words("Enabled").first().is_some_and(|word| word.eq_ignore_ascii_case("no"));
        if off || !words("Types").iter().any(|word| word == "deb") {
            continue;
        }
        for uri in words("URIs") {
            for suite in words("Suites") {
                sources.push(Source {
                    uri: uri.clone(),
                    suite,
                    components: words("Components"),
                    signed_by: words("Signed-By").into_iter().next(),
                });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(list: &str, deb822: &str) -> Vec<String> {
        let apt = tempfile::tempdir().unwrap();
        fs::create_dir(apt.path().join("sources.list.d")).unwrap();
        fs::write(apt.path().join("sources.list"), list).unwrap();
        fs::write(apt.path().join("sources.list.d/debian.sources"), deb822).unwrap();
        fs::write(
            apt.path().join("sources.list.d/other.list"),
            "deb http://other.example bookworm main\n",
        )
        .unwrap();
        own_sources(apt.path(), "bookworm")
    }

    #[test]
    fn only_the_releases_own_sources_are_used() {
        let list = "# deb http://no.example bookworm main\n\
                    deb http://a.example/debian bookworm main contrib\n\
                    deb-src http://a.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/usr/share/keyrings/vendor.gpg] http://v.example bookworm main\n\
                    deb http://a.example/debian bookworm-backports main\n\
                    deb http://a.example/debian trixie main\n";
        assert_eq!(lines(list, ""), ["deb http://a.example/debian bookworm main"]);
    }

    #[test]
    fn stanzas_give_one_line_for_each_suite() {
        let text = "Types: deb deb-src\nURIs: http://a.example/debian\nSuites: bookworm\n bookworm-updates\n\
                    Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://b.example\nSuites: bookworm\nComponents: main\n";
        let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let expected = ["bookworm", "bookworm-updates"]
            .map(|suite| format!("deb {key} http://a.example/debian {suite} main"));
        assert_eq!(lines("", text), expected);
    }
}
