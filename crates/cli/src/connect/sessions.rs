//! `connect --list` and `--end`.

use jiff::Timestamp;
use kohakuriver_agent_protocol::session::{SessionInfo, SessionInput, SessionOutput};
use kohakuriver_agent_protocol::{FrameReader, StreamTarget, write};
use tokio::io::split;

use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::ui::{Fit, Grid, Tone, age};
use crate::vps::vocabulary;

pub async fn list(context: &Context, vps: &VpsRef) -> Result<(), CommandError> {
    let sessions = ask(context, vps, SessionInput::List).await?;
    if context.out.json {
        context.out.json(&sessions);
        return Ok(());
    }
    if sessions.is_empty() {
        context.out.note(format!("no sessions in {vps}"));
        context.out.hint(format!("`kohakuriver connect {vps}` starts one"));
        return Ok(());
    }
    let mut grid = Grid::new(&[
        ("SESSION", Fit::Whole),
        ("USER", Fit::Cut),
        ("CLIENTS", Fit::Cut),
        ("SIZE", Fit::Cut),
        ("AGE", Fit::Cut),
        ("IDLE", Fit::Cut),
        ("TITLE", Fit::Cut),
    ]);
    let now = Timestamp::now();
    let since = |second| since(second, now);
    for session in &sessions {
        let cells = [
            session.name.clone(),
            session.user.clone(),
            session.clients.to_string(),
            format!("{}x{}", session.size.cols, session.size.rows),
            since(session.created_at),
            since(session.active_at),
            session.title.clone(),
        ];
        grid.row(cells.into_iter().map(|cell| (Tone::Plain, cell)).collect());
    }
    grid.print(context.out);
    Ok(())
}

pub async fn end(context: &Context, vps: &VpsRef, name: &str) -> Result<(), CommandError> {
    let sessions = ask(context, vps, SessionInput::End(name.to_owned())).await?;
    if context.out.json {
        context.out.json(&sessions);
    } else {
        context.out.note(format!("session {name} of {vps} was ended"));
    }
    Ok(())
}

async fn ask(
    context: &Context,
    vps: &VpsRef,
    question: SessionInput,
) -> Result<Vec<SessionInfo>, CommandError> {
    let stream = context.api.stream(vps.as_str(), &StreamTarget::Session).await;
    let (read, mut to_agent) = split(stream.map_err(vocabulary::with_list_hint)?);
    let lost = || CommandError::unreachable("the connection to the VPS was lost");
    write(&mut to_agent, &question).await.map_err(|_| lost())?;
    match FrameReader::<_, SessionOutput>::new(read, &[]).next().await {
        Ok(Some(SessionOutput::List(sessions))) => Ok(sessions),
        Ok(Some(SessionOutput::Failed(failed))) => {
            Err(CommandError::request(failed.message)
                .hint(format!("kohakuriver connect {vps} --list")))
        }
        Ok(_) | Err(_) => Err(lost()),
    }
}

fn since(second: u64, now: Timestamp) -> String {
    let second = i64::try_from(second).unwrap_or_default();
    let then = Timestamp::from_second(second).map(|then| then.to_string()).unwrap_or_default();
    age(&then, now).unwrap_or_else(|| "-".to_owned())
}
