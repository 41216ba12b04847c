//! The configuration file.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

use crate::error::CommandError;
use crate::files;

/// The content of the file. Unknown keys are errors, so that a misspelled one is not ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub ssh_proxy_port: Option<u16>,
}

/// Reads the file; a file that does not exist is empty.
pub fn read(path: &Path) -> Result<ConfigFile, CommandError> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(error) => return Err(files::unreadable(path, &error)),
    };
    toml::from_str(&text).map_err(|error| {
        let before = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = error.message().lines().next().unwrap_or("malformed");
        CommandError::usage(format!("{shown}:{line}: {message}"))
            .hint("the file may set host, port and ssh_proxy_port")
    })
}
