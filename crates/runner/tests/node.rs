//! A whole runner on the machine's real Docker, and the host's side of the link played here.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kohakuriver_model::{
    ImageSource, InstanceId, InstanceSpec, Intent, NodeId, Observation, Observed,
};
use kohakuriver_runner::{
    ContainerSettings, LockError, MachineSettings, Runner, RunnerConfig, lock_data_dir,
};
use kohakuriver_runner_link::frame::FrameStream;
use kohakuriver_runner_link::pki::{Ca, RunnerIdentity};
use kohakuriver_runner_link::protocol::{
    ALPN_CONTROL, Order, StreamOpen, StreamOpened, StreamTarget, ToHost, ToRunner,
};
use kohakuriver_runner_link::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

type Link = FrameStream<TlsStream<TcpStream>>;

const NOW_MS: i64 = 1_800_000_000_000;

/// Accepts connections of the runner and sorts them by protocol.
struct Host {
    controls: mpsc::Receiver<Link>,
    datas: mpsc::Receiver<Link>,
    identity: RunnerIdentity,
}

impl Host {
    async fn new(dir: &Path) -> Self {
        let now = now_ms();
        let ca = Ca::load_or_create(dir, now).unwrap();
        let config = tls::host_config(&ca, ca.issue_host(now).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let node_id = NodeId::new("n1");
        let identity = RunnerIdentity {
            certificate_pem: ca.sign_runner(&csr.pem().unwrap(), &node_id, now).unwrap(),
            node_id,
            node_name: format!("test-{}", rand::random::<u32>()).parse().unwrap(),
            host_address: listener.local_addr().unwrap().to_string().parse().unwrap(),
            key_pem: key.serialize_pem(),
            ca_pem: ca.certificate_pem().to_owned(),
        };
        let (control, controls) = mpsc::channel(8);
        let (data, datas) = mpsc::channel(64);
        tokio::spawn(accept(listener, TlsAcceptor::from(config), control, data));
        Self { controls, datas, identity }
    }

    /// The next control connection, after its hello and its sync.
    async fn greet(&mut self) -> (Link, Vec<(InstanceId, Observation)>) {
        let mut link = within(self.controls.recv()).await.unwrap();
        let hello = within(link.receive::<ToHost>()).await.unwrap();
        let ToHost::Hello(hello) = hello else { panic!("{hello:?}") };
        assert!(hello.inventory.cores > 0 && hello.inventory.memory_bytes > 0);
        let node_name = self.identity.node_name.to_string();
        let welcome = ToRunner::Welcome { version: 1, node_name, now_ms: NOW_MS };
        link.send(&welcome).await.unwrap();
        let mut known = Vec::new();
        loop {
            match within(link.receive::<ToHost>()).await.unwrap() {
                ToHost::Observation { task_id, observation } => known.push((task_id, observation)),
                ToHost::SyncDone => break,
                other => panic!("{other:?}"),
            }
        }
        link.send(&ToRunner::SyncDone).await.unwrap();
        (link, known)
    }

    /// As the host does it: an idle connection that died is passed over.
    async fn open(&mut self, task_id: InstanceId, target: StreamTarget) -> (Link, StreamOpened) {
        loop {
            let mut data = within(self.datas.recv()).await.unwrap();
            let open = StreamOpen { task_id, target: target.clone() };
            if data.send(&open).await.is_ok()
                && let Ok(opened) = within(data.receive::<StreamOpened>()).await
            {
                return (data, opened);
            }
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    control: mpsc::Sender<Link>,
    data: mpsc::Sender<Link>,
) {
    while let Ok((tcp, _)) = listener.accept().await {
        let Ok(stream) = tls.accept(tcp).await else {
            continue;
        };
        let is_control = stream.get_ref().1.alpn_protocol() == Some(ALPN_CONTROL);
        let link = FrameStream::new(stream);
        let _ = if is_control { control.send(link).await } else { data.send(link).await };
    }
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(180), work).await.expect("it takes too long")
}

async fn until(link: &mut Link, holds: impl Fn(&Observation) -> bool) -> Observation {
    within(async {
        loop {
            match link.receive::<ToHost>().await.unwrap() {
                ToHost::Observation { observation, .. } if holds(&observation) => {
                    return observation;
                }
                ToHost::Heartbeat { .. } => link.send(&ToRunner::HeartbeatAck).await.unwrap(),
                _ => {}
            }
        }
    })
    .await
}

fn is_running(seen: &Observation) -> bool {
    matches!(seen.state, Observed::Running { .. })
}

/// The runner's machine; its containers go with it.
struct Machine {
    dir: tempfile::TempDir,
    node: String,
}

impl Machine {
    fn config(&self) -> RunnerConfig {
        RunnerConfig {
            data_dir: self.dir.path().join("data"),
            shared_dir: self.dir.path().join("shared"),
            executable: standin_agent(),
            docker_socket: None,
            stop_grace: Duration::from_secs(1),
            containers: ContainerSettings {
                network: "krtest-node".parse().unwrap(),
                local_images: vec!["kohakuriver-test/*".parse().unwrap()],
                ..ContainerSettings::default()
            },
            machines: MachineSettings::default(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let filter = format!("label=kohakuriver.node={}", self.node);
        let listed = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
        let Ok(listed) = listed else { return };
        for id in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            let _ = Command::new("docker").args(["rm", "-f", id]).output();
        }
    }
}

fn standin_agent() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples/standin_agent");
    assert!(path.exists(), "{} is missing: cargo test builds it", path.display());
    path
}

fn order(task_id: InstanceId, intent: Intent) -> Order {
    let reference = "kohakuriver-test/busybox:latest".to_owned();
    let image = ImageSource::Registry { reference };
    let spec = InstanceSpec { pids_limit: 100, ..InstanceSpec::new(image) };
    Order { task_id, intent, spec }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_lives_through_restarts_of_runner_and_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::new(dir.path()).await;
    let machine = Machine { dir, node: host.identity.node_name.to_string() };
    let id = InstanceId::from_u64(rand::random_range(1..i64::MAX as u64));
    let start = async |identity: &RunnerIdentity| {
        let runner = {
            let lock = lock_data_dir(&machine.config().data_dir).unwrap();
            Runner::start(machine.config(), identity.clone(), lock).await.unwrap()
        };
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(runner.run(shutdown.clone()));
        (running, shutdown)
    };
    let (running, shutdown) = start(&host.identity).await;

    // A second one on the same data directory is refused.
    let second = lock_data_dir(&machine.config().data_dir);
    assert!(matches!(second, Err(LockError::Taken { .. })));

    let (mut link, known) = host.greet().await;
    assert!(known.is_empty());
    let intent = Intent::created();
    link.send(&ToRunner::Order(Box::new(order(id, intent)))).await.unwrap();
    let first = until(&mut link, is_running).await;
    assert!(first.ssh_host_key.is_some());

    // Bytes go both ways, half-close included, and refusals say why.
    let (data, opened) = host.open(id, StreamTarget::Tcp { port: 80 }).await;
    assert_eq!(opened, StreamOpened::Opened);
    let (mut stream, early) = data.into_parts();
    assert!(early.is_empty());
    let sent = vec![7u8; 3 << 20];
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let (echo, ()) = tokio::join!(
        async {
            let mut echo = Vec::new();
            within(reader.read_to_end(&mut echo)).await.unwrap();
            echo
        },
        async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        }
    );
    assert!(echo == sent, "{} of {} bytes came back", echo.len(), sent.len());
    let (_, refused) = host.open(id, StreamTarget::Tcp { port: 1 }).await;
    let StreamOpened::Refused { error } = refused else { panic!("opened") };
    assert_eq!(error, "nothing listens on port 1");
    let nobody = InstanceId::from_u64(1);
    let (_, refused) = host.open(nobody, StreamTarget::Ssh).await;
    assert!(matches!(refused, StreamOpened::Refused { .. }));

    // The host goes away and comes back; then the runner does. Nothing is restarted.
    drop(link);
    let (link, known) = host.greet().await;
    assert_eq!(known, [(id, first.clone())]);
    drop(link);
    shutdown.cancel();
    within(running).await.unwrap().unwrap();
    while host.controls.try_recv().is_ok() {}
    while host.datas.try_recv().is_ok() {}
    let (running, shutdown) = start(&host.identity).await;
    let (mut link, known) = host.greet().await;
    let again = match known.into_iter().find(|(_, seen)| is_running(seen)) {
        Some((_, seen)) => seen,
        None => until(&mut link, is_running).await,
    };
    assert_eq!(again, first);

    // It ends by itself: told, not restarted. Then a restart, a stop and a deletion.
    let (_, _) = tokio::join!(
        async {
            tokio::time::timeout(
                Duration::from_secs(5),
                host.open(id, StreamTarget::Tcp { port: 3 }),
            )
            .await
        },
        until(&mut link, |seen| matches!(seen.state, Observed::Stopped { exit_code: Some(3), .. }))
    );
    let intent = intent.restart();
    link.send(&ToRunner::Order(Box::new(order(id, intent)))).await.unwrap();
    let restarted = until(&mut link, is_running).await;
    assert_eq!(restarted.ssh_host_key, first.ssh_host_key);
    let intent = intent.stop();
    link.send(&ToRunner::Order(Box::new(order(id, intent)))).await.unwrap();
    until(&mut link, |seen| matches!(seen.state, Observed::Stopped { .. })).await;
    link.send(&ToRunner::Order(Box::new(order(id, intent.delete())))).await.unwrap();
    until(&mut link, |seen| seen.state == Observed::Absent).await;
    shutdown.cancel();
    within(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn more_connections_are_dialled_when_the_host_asks() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::new(dir.path()).await;
    let machine = Machine { dir, node: host.identity.node_name.to_string() };
    let lock = lock_data_dir(&machine.config().data_dir).unwrap();
    let runner = Runner::start(machine.config(), host.identity.clone(), lock).await.unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(runner.run(shutdown.clone()));
    let (mut link, _) = host.greet().await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        idle.push(within(host.datas.recv()).await.unwrap());
    }
    link.send(&ToRunner::DialData { count: 3 }).await.unwrap();
    for _ in 0..3 {
        idle.push(within(host.datas.recv()).await.unwrap());
    }
    // One that is taken is replaced.
    let open = StreamOpen { task_id: InstanceId::from_u64(1), target: StreamTarget::Ssh };
    idle[0].send(&open).await.unwrap();
    idle.push(within(host.datas.recv()).await.unwrap());
    shutdown.cancel();
    within(running).await.unwrap().unwrap();
}
