//! Settings and their sources: flags, then environment, then file, then default.

mod address;
mod file;
mod token;

use std::fmt;
use std::path::PathBuf;

pub use address::Address;
use file::ConfigFile;
pub use token::Token;

use crate::GlobalArgs;
use crate::error::CommandError;

/// Reads an environment variable; tests pass their own.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

const DEFAULT_HOST: &str = "localhost";
const DEFAULT_PORT: u16 = 8000;
const DEFAULT_SSH_PROXY_PORT: u16 = 8002;

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Flag(&'static str),
    Environment(&'static str),
    File(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Environment(name) => f.write_str(name),
            Self::File(path) => path.display().fmt(f),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    pub value: T,
    pub source: Source,
}

/// All settings of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub host: Setting<Address>,
    pub port: Setting<u16>,
    pub ssh_proxy_port: Setting<u16>,
    /// The path of the configuration file, beside which trust and credentials are stored. `None`
    /// without a home directory.
    pub folder: Option<PathBuf>,
    /// The token of the environment, which takes precedence over a stored one.
    pub token: Option<Token>,
    /// Whether a token may be sent over the network without encryption.
    pub insecure: bool,
}

impl Settings {
    /// Merges the four sources.
    pub fn load(flags: &GlobalArgs, lookup: Lookup<'_>) -> Result<Self, CommandError> {
        let path = config_path(lookup);
        let file = match &path {
            Some(path) => file::read(path)?,
            None => ConfigFile::default(),
        };
        let from_file = || Source::File(path.clone().unwrap_or_default());

        let host = first([
            flags.host.clone().map(|value| (value, Source::Flag("--host"))),
            variable(lookup, "KOHAKURIVER_HOST"),
            file.host.map(|value| (value, from_file())),
        ]);
        let (text, source) = host.unwrap_or((DEFAULT_HOST.to_owned(), Source::Default));
        let (address, url_port) = address::parse(&text).map_err(|error| {
            CommandError::usage(format!("the host setting ({source}): {error}"))
                .hint("write a name, an address, http://host:port or https://host:port")
        })?;
        // A port inside the host belongs to that host: it beats any port set less directly.
        let rank = |source: &Source| match source {
            Source::Flag(_) => 3,
            Source::Environment(_) => 2,
            Source::File(_) => 1,
            Source::Default => 0,
        };
        let port = first([
            flags.port.map(|value| (value, Source::Flag("--port"))),
            port_variable(lookup, "KOHAKURIVER_PORT")?,
            file.port.map(|value| (value, from_file())),
        ])
        .unwrap_or((DEFAULT_PORT, Source::Default));
        let port = match url_port {
            Some(inside)
                if rank(&port.1) <= rank(&source) && !matches!(port.1, Source::Flag(_)) =>
            {
                (inside, source.clone())
            }
            Some(_) | None => port,
        };
        let proxy = first([
            port_variable(lookup, "KOHAKURIVER_SSH_PROXY_PORT")?,
            file.ssh_proxy_port.map(|value| (value, from_file())),
        ])
        .unwrap_or((DEFAULT_SSH_PROXY_PORT, Source::Default));

        let token = variable(lookup, "KOHAKURIVER_TOKEN").map(|(text, _)| text.parse()).transpose();
        let token = token.map_err(|error| {
            CommandError::usage(format!("KOHAKURIVER_TOKEN: {error}"))
                .hint("copy the token once more, or `unset KOHAKURIVER_TOKEN`")
        })?;
        let insecure =
            variable(lookup, "KOHAKURIVER_INSECURE").is_some_and(|(text, _)| text == "1");

        Ok(Self {
            folder: path.as_deref().and_then(|path| path.parent()).map(PathBuf::from),
            token,
            insecure,
            host: Setting { value: address, source },
            port: Setting { value: port.0, source: port.1 },
            ssh_proxy_port: Setting { value: proxy.0, source: proxy.1 },
        })
    }
}

/// Returns the path of the configuration file, whether it exists or not. `None` without a home
/// directory.
pub fn config_path(lookup: Lookup<'_>) -> Option<PathBuf> {
    let set = |name| lookup(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    set("KOHAKURIVER_CONFIG").or_else(|| {
        let folder = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
        Some(folder.join("kohakuriver/config.toml"))
    })
}

fn first<T, const N: usize>(layers: [Option<(T, Source)>; N]) -> Option<(T, Source)> {
    layers.into_iter().flatten().next()
}

fn variable(lookup: Lookup<'_>, name: &'static str) -> Option<(String, Source)> {
    let value = lookup(name).filter(|text| !text.is_empty())?;
    Some((value, Source::Environment(name)))
}

fn port_variable(
    lookup: Lookup<'_>,
    name: &'static str,
) -> Result<Option<(u16, Source)>, CommandError> {
    let Some((text, source)) = variable(lookup, name) else {
        return Ok(None);
    };
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Some((port, source))),
        Ok(_) | Err(_) => {
            Err(CommandError::usage(format!("{name} is '{text}', which is not a port"))
                .hint(format!("set it to a number from 1 to 65535, or `unset {name}`")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &GlobalArgs, variables: &[(&str, &str)]) -> Result<Settings, CommandError> {
        Settings::load(flags, &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn with_file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_default() {
        let (_folder, path) = with_file("host = \"file\"\nport = 3\nssh_proxy_port = 33\n");
        let none = GlobalArgs::default();
        let settings = load(&none, &[]).unwrap();
        assert_eq!(settings.host.value.to_string(), "localhost");
        assert_eq!((settings.port.value, settings.ssh_proxy_port.value), (8000, 8002));
        assert_eq!(settings.port.source, Source::Default);

        let settings = load(&none, &[("KOHAKURIVER_CONFIG", &path)]).unwrap();
        assert_eq!(settings.host.value.to_string(), "file");
        assert_eq!((settings.port.value, settings.ssh_proxy_port.value), (3, 33));

        let environment = [("KOHAKURIVER_CONFIG", path.as_str()), ("KOHAKURIVER_HOST", "env")];
        let settings = load(&none, &environment).unwrap();
        assert_eq!(settings.host.source, Source::Environment("KOHAKURIVER_HOST"));
        assert_eq!((settings.host.value.to_string(), settings.port.value), ("env".to_owned(), 3));

        let flags = GlobalArgs { host: Some("flag".to_owned()), port: Some(9), json: false };
        let settings = load(&flags, &environment).unwrap();
        assert_eq!((settings.host.value.to_string(), settings.port.value), ("flag".to_owned(), 9));
    }

    #[test]
    fn port_in_host_overrides_less_direct_settings() {
        let (_folder, path) = with_file("host = \"http://file:3\"\nport = 4\n");
        let flag = |host: &str| GlobalArgs { host: Some(host.to_owned()), ..GlobalArgs::default() };
        let environment = [("KOHAKURIVER_CONFIG", path.as_str()), ("KOHAKURIVER_PORT", "5")];
        assert_eq!(load(&flag("http://a:7"), &environment).unwrap().port.value, 7);
        assert_eq!(load(&flag("a"), &environment).unwrap().port.value, 5);
        assert_eq!(load(&GlobalArgs::default(), &environment).unwrap().port.value, 5);
        assert_eq!(load(&GlobalArgs::default(), &environment[..1]).unwrap().port.value, 3);
    }

    #[test]
    fn token_of_environment_is_never_printed() {
        let settings = load(&GlobalArgs::default(), &[("KOHAKURIVER_TOKEN", "hunter2")]).unwrap();
        assert_eq!(settings.token, Some("hunter2".parse().unwrap()));
        assert!(!format!("{settings:?}").contains("hunter2"));
        let failure =
            load(&GlobalArgs::default(), &[("KOHAKURIVER_TOKEN", "two words")]).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(!failure.message.contains("two words"), "{}", failure.message);
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line() {
        let (_folder, path) = with_file("host = \"a\"\nhots = \"b\"\n");
        let failure = load(&GlobalArgs::default(), &[("KOHAKURIVER_CONFIG", &path)]).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.message.starts_with(&format!("{path}:2: ")), "{}", failure.message);
        assert!(failure.message.contains("hots"), "{}", failure.message);
    }

    #[test]
    fn invalid_port_variable_is_a_usage_error() {
        let failure = load(&GlobalArgs::default(), &[("KOHAKURIVER_PORT", "http")]).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.message.contains("KOHAKURIVER_PORT"));
    }
}
