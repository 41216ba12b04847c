//! A running session: a program in a terminal, its latest output, and its clients.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kohakuriver_agent_protocol::exec::{ExecExit, ExecFailed, Size, Tty};
use kohakuriver_agent_protocol::session::{Attach, SessionInfo};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::ring::Ring;
use super::screen::Screen;
use crate::exec::{terminal_request, winsize};
use crate::launch::{self, Launcher, SpawnRequest, failed};
use crate::process::{self, Exit, Terminal};
use crate::pty::{self, Master, TerminalOutput};

/// Output kept for clients that come back.
const KEPT: usize = 512 * 1024;
/// How far the program may run ahead of the client that is best served: less than what is kept,
/// so that a session's only client misses nothing.
const AHEAD: u64 = 128 * 1024;
const BLOCK: usize = 16 * 1024;
/// Clients whose input is still counted after they went.
const MOST_INPUTS: usize = 16;

pub(super) struct Session {
    pub name: String,
    /// A user chose the name: the session is retained without clients, unless the last one was
    /// lost and ephemeral.
    pub named: bool,
    user: String,
    created_at: u64,
    pid: Pid,
    /// Its number may be another's from then on.
    program_ended: CancellationToken,
    pub master: Master,
    state: Mutex<State>,
    /// Counts what happened: output, progress of a client, the end.
    news: watch::Sender<u64>,
}

struct State {
    ring: Ring,
    screen: Screen,
    size: Size,
    active_at: u64,
    clients: HashMap<u64, Client>,
    /// How much input of each client was taken, the latest clients last.
    inputs: Vec<(u64, u64)>,
    /// How often a client has taken control.
    turns: u64,
    ended: Option<ExecExit>,
}

struct Client {
    position: u64,
    /// When it took control last; zero for one that never did.
    turn: u64,
    /// Whether it still belongs to the connection that made it.
    replaced: CancellationToken,
}

/// The next message to a client.
pub(super) enum Next {
    Output(Vec<u8>),
    /// It fell behind what is kept: this is where it goes on, after a picture.
    Skipped(u64, Vec<u8>),
    Ended(ExecExit),
    Wait,
}

impl Session {
    /// Starts the user's login shell.
    pub fn start(
        launcher: &Launcher,
        name: String,
        attach: &Attach,
    ) -> Result<Arc<Self>, ExecFailed> {
        let user = launcher.user(attach.user.as_deref())?;
        let tty = Tty { term: attach.term.clone(), size: attach.size };
        let pty = pty::open(&terminal_request(&tty), user.uid)
            .map_err(|error| failed(126, format!("cannot open a terminal: {error}")))?;
        let env = vec![("KOHAKURIVER_SESSION".to_owned(), name.clone())];
        let locale = attach.locale.clone();
        let wanted = SpawnRequest { env, locale, term: Some(tty.term), ..SpawnRequest::default() };
        let spec = launcher.spec(&user, wanted)?;
        let program = PathBuf::from(&spec.program);
        let child = process::start(&launcher.children, spec, Terminal::Pty(pty.slave))
            .map_err(|error| launch::not_started(&program, &error))?;
        let now = now();
        let session = Arc::new(Self {
            named: attach.session.is_some(),
            name,
            user: user.name,
            created_at: now,
            pid: Pid::from_raw(child.pid.cast_signed()),
            program_ended: CancellationToken::new(),
            master: pty.master,
            state: Mutex::new(State {
                ring: Ring::new(KEPT),
                screen: Screen::new(attach.size),
                size: attach.size,
                active_at: now,
                clients: HashMap::new(),
                inputs: Vec::new(),
                turns: 0,
                ended: None,
            }),
            news: watch::Sender::new(0),
        });
        Ok(session.run(child.exit))
    }

    fn run(self: Arc<Self>, exit: oneshot::Receiver<Exit>) -> Arc<Self> {
        let session = Arc::clone(&self);
        tokio::spawn(async move {
            let program_ended = session.program_ended.clone();
            let output = TerminalOutput::new(session.master.clone(), program_ended.clone());
            let ending = async {
                let ended = exit.await;
                program_ended.cancel();
                ended
            };
            let (ended, ()) = tokio::join!(ending, session.read_output(output));
            session.lock().ended = Some(launch::exit(ended.unwrap_or(Exit::Code(126))));
            session.tell();
        });
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Takes what the program writes, as fast as its best client.
    async fn read_output(&self, mut terminal: TerminalOutput) {
        let mut news = self.news.subscribe();
        let mut buffer = vec![0; BLOCK];
        loop {
            while self.is_ahead() {
                if news.changed().await.is_err() {
                    return;
                }
            }
            let read = match terminal.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => read,
            };
            let output = buffer.get(..read).unwrap_or_default();
            {
                let mut state = self.lock();
                state.ring.push(output);
                state.screen.process(output);
                state.active_at = now();
            }
            self.tell();
        }
    }

    fn is_ahead(&self) -> bool {
        let state = self.lock();
        let end = state.ring.end();
        let best = state.clients.values().map(|client| client.position).max();
        best.is_some_and(|best| end.saturating_sub(best) > AHEAD)
    }

    /// Lets a client in; one of the same number from an earlier connection goes. Gives the
    /// position its output starts at, whether a picture comes first, and how much of its input
    /// was taken.
    pub fn join(
        &self,
        attach: &Attach,
        replaced: CancellationToken,
    ) -> (u64, Option<Vec<u8>>, u64) {
        let mut state = self.lock();
        let end = state.ring.end();
        let resumed = attach.output.filter(|at| state.ring.read(*at, 0).is_some());
        // Whoever made the session finds an empty screen and need not be shown it.
        let picture = (resumed.is_none() && end > 0).then(|| state.screen.picture());
        let position = resumed.unwrap_or(end);
        let turn = if attach.read_only { 0 } else { state.next_turn() };
        let client = Client { position, turn, replaced };
        if let Some(old) = state.clients.insert(attach.client, client) {
            old.replaced.cancel();
        }
        let known = state.inputs.iter().position(|(client, _)| *client == attach.client);
        let taken = known.map_or(0, |at| state.inputs.remove(at).1);
        state.inputs.push((attach.client, taken));
        if state.inputs.len() > MOST_INPUTS {
            state.inputs.remove(0);
        }
        let redraw = picture.is_some() && state.screen.is_full_screen();
        drop(state);
        self.tell();
        if redraw {
            self.ask_to_redraw();
        }
        (position, picture, taken)
    }

    /// A full-screen program knows more of its screen than any emulator.
    fn ask_to_redraw(&self) {
        if let Ok(group) = nix::unistd::tcgetpgrp(&self.master) {
            let _ = killpg(group, Signal::SIGWINCH);
        }
    }

    /// The client's connection is gone; not if another one has taken its place.
    pub fn leave(&self, client: u64, replaced: &CancellationToken) {
        if !replaced.is_cancelled() {
            self.lock().clients.remove(&client);
            self.tell();
        }
    }

    pub fn clients(&self) -> usize {
        self.lock().clients.len()
    }

    /// Returns the next message to a client at `position`. The caller must send it.
    pub fn next(&self, client: u64, position: &mut u64) -> Next {
        let mut state = self.lock();
        let end = state.ring.end();
        let next = if *position == end {
            match state.ended {
                Some(exit) => Next::Ended(exit),
                None => Next::Wait,
            }
        } else if let Some(output) = state.ring.read(*position, BLOCK) {
            *position += output.len() as u64;
            Next::Output(output)
        } else {
            *position = end;
            Next::Skipped(end, state.screen.picture())
        };
        let moved = match state.clients.get_mut(&client) {
            Some(known) if known.position != *position => {
                known.position = *position;
                true
            }
            Some(_) | None => false,
        };
        drop(state);
        if moved {
            self.tell();
        }
        next
    }

    /// How much of a client's input was taken.
    pub fn input_of(&self, client: u64) -> u64 {
        let state = self.lock();
        state.inputs.iter().find(|(known, _)| *known == client).map_or(0, |(_, taken)| *taken)
    }

    pub fn took_input(&self, client: u64, bytes: usize) -> u64 {
        let mut state = self.lock();
        state.active_at = now();
        let known = state.inputs.iter_mut().find(|(known, _)| *known == client);
        known.map_or(0, |(_, taken)| {
            *taken += bytes as u64;
            *taken
        })
    }

    /// Whether the client is the one that came, typed or changed its size last.
    pub fn is_in_control(&self, client: u64) -> bool {
        let state = self.lock();
        let last = state.clients.iter().max_by_key(|(_, client)| client.turn);
        last.is_some_and(|(last, _)| *last == client)
    }

    /// Puts a client in control. The terminal takes its size.
    pub fn take_control(&self, client: u64, size: Size) {
        let mut state = self.lock();
        let turn = state.next_turn();
        if let Some(client) = state.clients.get_mut(&client) {
            client.turn = turn;
        }
        drop(state);
        self.resize(size);
    }

    pub fn resize(&self, size: Size) {
        let mut state = self.lock();
        if state.size == size || size.rows == 0 || size.cols == 0 {
            return;
        }
        state.size = size;
        state.screen.resize(size);
        drop(state);
        self.master.resize(winsize(size));
    }

    /// Hangs the program up, as a terminal that is closed does.
    pub fn hang_up(&self) {
        if !self.program_ended.is_cancelled() {
            let _ = killpg(self.pid, Signal::SIGHUP);
            let _ = killpg(self.pid, Signal::SIGCONT);
            if let Ok(group) = nix::unistd::tcgetpgrp(&self.master)
                && group.as_raw() > 1
            {
                let _ = killpg(group, Signal::SIGHUP);
                let _ = killpg(group, Signal::SIGCONT);
            }
        }
    }

    pub fn kill(&self) {
        if !self.program_ended.is_cancelled() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }

    pub fn is_over(&self) -> bool {
        self.lock().ended.is_some()
    }

    pub fn info(&self) -> SessionInfo {
        let state = self.lock();
        SessionInfo {
            name: self.name.clone(),
            user: self.user.clone(),
            created_at: self.created_at,
            active_at: state.active_at,
            clients: u32::try_from(state.clients.len()).unwrap_or(u32::MAX),
            size: state.size,
            title: state.screen.title(),
        }
    }
}

impl State {
    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
