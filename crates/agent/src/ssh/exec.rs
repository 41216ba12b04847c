//! The program, user and environment of a session.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::server::{Peer, SshServer};
use crate::launch;
use crate::passwd::{self, User};
use crate::process::ProcessSpec;

const MAX_ENV_VARS: usize = 256;
const MAX_ENV_BYTES: usize = 64 * 1024;

/// The kind of program that a client requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Program {
    /// The login shell.
    Shell,
    Command(Vec<u8>),
    Sftp,
}

/// Why nothing was started; shown to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoProgram {
    #[error("this image has no shell; run one of its programs instead: ssh ... /path/to/program")]
    NoShell,
    #[error("the command is empty or has an unclosed quote")]
    BadCommand,
}

/// The variables a client sent, within bounds.
#[derive(Debug, Clone, Default)]
pub(super) struct ClientEnv {
    variables: Vec<(String, String)>,
    bytes: usize,
}

impl ClientEnv {
    /// Takes a variable, or tells that it is refused.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        let well_formed = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        // The loader's variables would change which code runs, not just how.
        if !well_formed || name.starts_with("LD_") {
            return false;
        }
        let bytes = self.bytes + name.len() + value.len();
        if self.variables.len() >= MAX_ENV_VARS || bytes > MAX_ENV_BYTES {
            return false;
        }
        self.bytes = bytes;
        self.variables.push((name.to_owned(), value.to_owned()));
        true
    }
}

/// The circumstances of a session that its environment shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting<'a> {
    pub peer: Peer,
    pub client: &'a ClientEnv,
    /// TERM and the terminal's device, if there is one.
    pub terminal: Option<(&'a str, &'a Path)>,
    /// The socket that leads to the client's key agent.
    pub agent: Option<&'a Path>,
}

/// Works out what to start.
pub(super) fn process(
    server: &SshServer,
    user: &User,
    program: &Program,
    setting: Setting<'_>,
) -> Result<ProcessSpec, NoProgram> {
    let shell = passwd::shell_of(user);
    let shown_shell = shell
        .as_ref()
        .map_or_else(|| OsString::from("/bin/sh"), |shell| shell.program.clone().into());
    let (program, arg0, args) = match (program, shell) {
        (Program::Shell, None) => return Err(NoProgram::NoShell),
        (Program::Shell, Some(shell)) => {
            let mut login = OsString::from("-");
            login.push(&shell.name);
            (shell.program.into(), Some(login), Vec::new())
        }
        (Program::Command(command), Some(shell)) => (
            shell.program.into(),
            Some(shell.name),
            vec!["-c".into(), OsString::from_vec(command.clone())],
        ),
        (Program::Command(command), None) => {
            let mut words = split_words(command).ok_or(NoProgram::BadCommand)?.into_iter();
            let program = words.next().ok_or(NoProgram::BadCommand)?;
            (program, None, words.collect())
        }
        (Program::Sftp, _) => {
            let mut words = server.sftp_server.iter().cloned();
            let program = words.next().ok_or(NoProgram::BadCommand)?;
            (program, None, words.collect())
        }
    };
    Ok(ProcessSpec {
        program,
        arg0,
        args,
        env: environment(server, user, shown_shell, setting),
        directory: user.home.clone(),
        identity: user.identity(),
    })
}

/// Builds the environment; what comes later wins.
fn environment(
    server: &SshServer,
    user: &User,
    shell: OsString,
    setting: Setting<'_>,
) -> Vec<(OsString, OsString)> {
    let text = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
    let mut env = launch::environment(&server.env, user, shell);
    let client = &setting.client.variables;
    env.extend(client.iter().map(|(name, value)| text(name, value)));

    let (client, connection) = match setting.peer {
        Peer::Runner => ("UNKNOWN 65535 65535".into(), "UNKNOWN 65535 UNKNOWN 65535".into()),
        Peer::Tcp { client, server } => {
            let (ip, port) = (client.ip().to_canonical(), client.port());
            let local = (server.ip().to_canonical(), server.port());
            (format!("{ip} {port} {}", local.1), format!("{ip} {port} {} {}", local.0, local.1))
        }
    };
    env.push(text("SSH_CLIENT", &client));
    env.push(text("SSH_CONNECTION", &connection));
    if let Some((term, device)) = setting.terminal {
        if !term.is_empty() && !term.contains('\0') {
            env.push(text("TERM", term));
        }
        env.push(("SSH_TTY".into(), device.into()));
    }
    if let Some(agent) = setting.agent {
        env.push(("SSH_AUTH_SOCK".into(), agent.into()));
    }
    launch::keep_possible(&mut env);
    env
}

/// Splits a command as a shell would, without expanding anything: for images that have no shell.
pub(super) fn split_words(command: &[u8]) -> Option<Vec<OsString>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut bytes = command.iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(open), byte) if byte == open => quote = None,
            (Some(b'"'), b'\\') => {
                let next = bytes.next()?;
                let word = word.get_or_insert_default();
                if !matches!(next, b'"' | b'\\' | b'$' | b'`') {
                    word.push(b'\\');
                }
                word.push(next);
            }
            (Some(_), byte) => word.get_or_insert_default().push(byte),
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (None, b'\\') => word.get_or_insert_default().push(bytes.next()?),
            (None, b' ' | b'\t' | b'\n') => words.extend(word.take().map(OsString::from_vec)),
            (None, byte) => word.get_or_insert_default().push(byte),
        }
    }
    if quote.is_some() {
        return None;
    }
    words.extend(word.map(OsString::from_vec));
    Some(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        let split = |text: &str| split_words(text.as_bytes());
        assert_eq!(split("/bin/true").unwrap(), ["/bin/true"]);
        assert_eq!(split("  a  'b c'\"d e\" f\\ g '' ").unwrap(), ["a", "b cd e", "f g", ""]);
        assert_eq!(split(r#""a\"b\n""#).unwrap(), [r#"a"b\n"#]);
        assert_eq!(split("").unwrap(), Vec::<OsString>::new());
        assert_eq!(split("'open"), None);
        assert_eq!(split("end\\"), None);
    }

    #[test]
    fn loader_variables_and_malformed_names_are_refused() {
        let mut env = ClientEnv::default();
        for name in ["LD_PRELOAD", "", "A=B", "A\0"] {
            assert!(!env.set(name, "x"), "{name:?}");
        }
        assert!(env.set("LC_ALL", "C.UTF-8"));
    }

    #[test]
    fn client_variables_are_bounded_in_number_and_size() {
        let mut env = ClientEnv::default();
        assert!((0..MAX_ENV_VARS).all(|n| env.set(&format!("V{n}"), "")));
        assert!(!env.set("ONE_MORE", ""));
        let mut env = ClientEnv::default();
        assert!(!env.set("BIG", &"x".repeat(MAX_ENV_BYTES)));
    }

    proptest! {
        #[test]
        fn quoted_words_come_back_whole(words in proptest::collection::vec("[^'\0]{0,12}", 0..6)) {
            let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            let split = split_words(line.as_bytes()).unwrap();
            prop_assert_eq!(split, words.into_iter().map(OsString::from).collect::<Vec<_>>());
        }
    }
}
