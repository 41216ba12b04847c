//! An SFTP channel of the user that the agent itself runs as, served in place.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};

use super::flow::Inbound;
use super::inline_executor::Worker;
use crate::sftp::{Origin, Session};

/// The session after some work, and whether more of it is to be done before it needs bytes. None: the client is gone.
type Worked = Option<(Box<Session>, io::Result<bool>)>;
type Working<'a> = Pin<Box<dyn Future<Output = Worked> + Send + 'a>>;

/// Serves the channel until its client is done, or sends what is no SFTP. None: the client has gone.
pub(super) async fn serve(
    worker: Worker,
    home: PathBuf,
    reader: &mut ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    inbound: &mut Inbound,
) -> Option<io::Result<()>> {
    let mut resting = None;
    let served = attend(&worker, home, &mut resting, reader, writer, inbound).await;
    if let Some(session) = resting {
        // Closing a file may take as long as anything else that is done to it. Nobody waits for that.
        tokio::spawn(async move { worker.run(move || drop(session)).await });
    }
    served
}

async fn attend(
    worker: &Worker,
    home: PathBuf,
    resting: &mut Option<Box<Session>>,
    reader: &mut ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    inbound: &mut Inbound,
) -> Option<io::Result<()>> {
    let begin = worker.run(move || Box::new(Session::new(Origin::of_user(&home))));
    let mut working: Option<Working<'_>> =
        Some(Box::pin(async { Some((begin.await?, Ok(false))) }));
    let mut client_eof = false;
    loop {
        if !inbound.is_empty()
            && let Some(mut session) = resting.take()
        {
            let count = inbound.take(session.space());
            session.filled(count);
            working = Some(Box::pin(work(worker, session, writer)));
        }
        if client_eof && working.is_none() {
            return Some(Ok(()));
        }
        let worked = async {
            match &mut working {
                Some(working) => working.await,
                None => pending().await,
            }
        };
        tokio::select! {
            // Always taken at once, whatever the work waits for: see `flow`.
            message = reader.wait() => {
                let message = message?;
                if let ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } = message {
                    inbound.push(data);
                } else if matches!(message, ChannelMsg::Eof) {
                    client_eof = true;
                } else if matches!(message, ChannelMsg::EndOfWrite) {
                    return Some(Ok(()));
                }
            }
            worked = worked => {
                let (session, more) = worked?;
                working = None;
                match more {
                    Ok(true) => working = Some(Box::pin(work(worker, session, writer))),
                    Ok(false) => *resting = Some(session),
                    Err(error) => {
                        *resting = Some(session);
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

/// Lets the session work, and sends what it answers.
async fn work(
    worker: &Worker,
    mut session: Box<Session>,
    writer: &ChannelWriteHalf<Msg>,
) -> Worked {
    let (session, worked, answers) = worker
        .run(move || {
            let worked = session.work();
            let answers = Bytes::copy_from_slice(session.answers());
            (session, worked, answers)
        })
        .await?;
    if !answers.is_empty() {
        writer.data_bytes(answers).await.ok()?;
    }
    Some((session, worked))
}
