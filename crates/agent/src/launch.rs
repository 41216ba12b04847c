//! Starts programs in the instance, with the same environment for every kind of session.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kohakuriver_agent_protocol::exec::ExecFailed;
use kohakuriver_agent_protocol::session::MAX_USER;

use crate::locale;
use crate::passwd::{self, User};
use crate::process::{Children, Exit, Identity, ProcessSpec};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_USER: &str = "root";
const MOST_MESSAGE: usize = 4096;

/// Starts programs that no SSH client asked for.
#[derive(Debug)]
pub(crate) struct Launcher {
    /// The environment of every program: [`base_environment`].
    pub env: BTreeMap<OsString, OsString>,
    pub children: Arc<Children>,
}

/// A program to start, as the client requested it.
#[derive(Debug, Default)]
pub(crate) struct SpawnRequest {
    /// Empty: the login shell.
    pub argv: Vec<OsString>,
    pub env: Vec<(String, String)>,
    /// The client's own variables of its locale.
    pub locale: Vec<(String, String)>,
    pub workdir: Option<PathBuf>,
    pub term: Option<String>,
}

impl Launcher {
    /// The user that was asked for.
    ///
    /// # Errors
    /// The image has none of that name.
    pub fn user(&self, name: Option<&str>) -> Result<User, ExecFailed> {
        let name = name.unwrap_or(DEFAULT_USER);
        let user = if name.len() > MAX_USER { None } else { passwd::lookup(name) };
        user.ok_or_else(|| failed(126, format!("this image has no user '{name}'")))
    }

    /// # Errors
    /// There is no shell, or the directory cannot be entered.
    pub fn spec(&self, user: &User, wanted: SpawnRequest) -> Result<ProcessSpec, ExecFailed> {
        let shell = passwd::shell_of(user);
        let shown = shell.as_ref().map_or_else(|| "/bin/sh".into(), |shell| shell.program.clone());
        let mut env = environment(&self.env, user, shown.into());
        if let Some(term) = wanted.term.filter(|term| !term.is_empty()) {
            env.push(("TERM".into(), term.into()));
        }
        let given = locale::known(wanted.locale).into_iter().chain(wanted.env);
        env.extend(given.map(|(name, value)| (name.into(), value.into())));
        keep_possible(&mut env);
        let mut words = wanted.argv.into_iter();
        let (program, arg0, args) = match (words.next(), shell) {
            (Some(program), _) => (program, None, words.collect()),
            (None, Some(shell)) => {
                let mut login = OsString::from("-");
                login.push(&shell.name);
                (shell.program.into(), Some(login), Vec::new())
            }
            (None, None) => {
                let why = "this image has no shell; name one of its programs to run";
                return Err(failed(127, why.to_owned()));
            }
        };
        if let Some(directory) = &wanted.workdir
            && !directory.is_dir()
        {
            return Err(failed(126, format!("{} is no directory", directory.display())));
        }
        Ok(ProcessSpec {
            program,
            arg0,
            args,
            env,
            directory: wanted.workdir.unwrap_or_else(|| user.home.clone()),
            identity: Identity { uid: user.uid, gid: user.gid, groups: user.groups.clone() },
        })
    }
}

/// The image's own variables, which arrive through the environment that the container's agent was
/// started with, and the configuration's over them. A guest's agent was started by its init, with
/// variables that are about the agent alone.
pub(crate) fn base_environment(
    configured: &BTreeMap<String, String>,
    is_guest: bool,
) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    if !is_guest {
        env.extend(std::env::vars_os());
    }
    env.extend(configured.iter().map(|(name, value)| (name.into(), value.into())));
    env
}

/// The environment of a user's programs; what comes later in it wins.
pub(crate) fn environment(
    base: &BTreeMap<OsString, OsString>,
    user: &User,
    shell: OsString,
) -> Vec<(OsString, OsString)> {
    let text = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
    let mut env = vec![text("PATH", DEFAULT_PATH), text("LANG", locale::DEFAULT)];
    env.extend(base.iter().map(|(name, value)| (name.clone(), value.clone())));
    env.push(("HOME".into(), user.home.clone().into()));
    env.push(text("USER", &user.name));
    env.push(text("LOGNAME", &user.name));
    env.push(("SHELL".into(), shell));
    env
}

/// A variable that no process can be given must not keep every process from starting.
pub(crate) fn keep_possible(env: &mut Vec<(OsString, OsString)>) {
    env.retain(|(name, value)| {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        !name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && !value.contains(&0)
    });
}

/// A message may quote what a client sent, which may be as long as a message can be.
pub(crate) fn failed(code: u8, mut message: String) -> ExecFailed {
    message.truncate(message.floor_char_boundary(MOST_MESSAGE));
    ExecFailed { code, message }
}

/// Why a program could not be started, with the code that shells give it.
pub(crate) fn not_started(program: &Path, error: &io::Error) -> ExecFailed {
    let name = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        return failed(127, format!("{name}: no such program in this VPS"));
    }
    failed(126, format!("{name} cannot be started: {error}"))
}

pub(crate) fn exit(exit: Exit) -> kohakuriver_agent_protocol::exec::ExecExit {
    match exit {
        Exit::Code(code) => kohakuriver_agent_protocol::exec::ExecExit::Code(code),
        Exit::Signal { number, .. } => kohakuriver_agent_protocol::exec::ExecExit::Signal(number),
    }
}
