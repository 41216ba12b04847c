//! Container events as hints.
//!
//! ```text
//!  away --engine answers--> listening (tell: look at everything) --stream ends--> away (tell too)
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use kohakuriver_model::NodeName;
use tokio::sync::mpsc;

use super::client::Engine;
use super::create_body::{LABEL_MANAGED, LABEL_NODE, LABEL_TASK};
use crate::backend::Change;
use crate::clock;

/// Listeners only look again, so a short pause is enough and costs nothing.
const RETRY: Duration = Duration::from_secs(1);
const OOM_COUNTED: Duration = Duration::from_millis(250);
/// Bursts wait in Docker's socket beyond this.
const QUEUE: usize = 256;

pub fn stream(engine: Arc<Engine>, node: &NodeName) -> BoxStream<'static, Change> {
    // Two nodes may share an engine; each hears its own.
    let labels = vec![format!("{LABEL_MANAGED}=true"), format!("{LABEL_NODE}={node}")];
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let task = tokio::spawn(async move {
        while listen(&engine, &labels, &sender).await.is_ok() {
            tokio::time::sleep(RETRY).await;
        }
    });
    let guard = AbortOnDrop(task);
    futures_util::stream::poll_fn(move |context| {
        let _held = &guard;
        receiver.poll_recv(context)
    })
    .boxed()
}

/// Forwards events until the engine goes away; an error means that the receiver is gone.
async fn listen(
    engine: &Engine,
    labels: &[String],
    sender: &mpsc::Sender<Change>,
) -> Result<(), ()> {
    if sender.is_closed() {
        return Err(());
    }
    let Ok(docker) = engine.docker().await else {
        return Ok(());
    };
    let filters = HashMap::from([
        ("type".to_owned(), vec!["container".to_owned()]),
        ("label".to_owned(), labels.to_vec()),
    ]);
    // The subscription begins only when the engine has read the request. What happened between
    // the look at everything and that moment is told too.
    let since = (clock::now_ms() / 1000 - 1).to_string();
    let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
    let mut events = Box::pin(docker.events(Some(options)));
    sender.send(Change::Everything).await.map_err(drop)?;
    while let Some(Ok(event)) = events.next().await {
        let Some(change) = change(&event) else { continue };
        sender.send(change).await.map_err(drop)?;
        if event.action.as_deref() == Some("oom") {
            // Told before the kernel has killed and counted: look once more when it has.
            let sender = sender.clone();
            tokio::spawn(async move {
                tokio::time::sleep(OOM_COUNTED).await;
                let _ = sender.send(change).await;
            });
        }
    }
    sender.send(Change::Everything).await.map_err(drop)
}

fn change(event: &EventMessage) -> Option<Change> {
    let action = event.action.as_deref()?;
    let matters = ["die", "start", "destroy", "oom", "pause", "unpause"].contains(&action);
    let id = event.actor.as_ref()?.attributes.as_ref()?.get(LABEL_TASK)?.parse().ok()?;
    matters.then_some(Change::Instance(id))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
