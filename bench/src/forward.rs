//! Forwarded ports: throughput, the round trip of one byte, and the cost of a thousand open
//! connections.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kohakuriver_e2e::{DEBIAN, Site, run as run_command, wait_until};

use crate::sample::{Line, timed};

const ROUNDS: usize = 10;
const BYTES: usize = 2_000_000_000;
const PINGS: usize = 3000;
const CONNECTIONS: usize = 1000;
/// Echoes its input; the letter g requests BYTES bytes.
const SERVICE: &str = "perl -MIO::Socket::INET -e '$SIG{CHLD} = \"IGNORE\"; $l = IO::Socket::INET->new(Listen => 2000, LocalPort => 7000, ReuseAddr => 1); \
    while (1) { $c = $l->accept or next; if (fork) { close $c; next } $c->blocking(1); \
    setsockopt($c, 6, 1, pack(\"l\", 1)); $b = \"x\" x 262144; \
    while (sysread($c, $q, 1)) { if ($q eq \"g\") { $n = 2000000000; while ($n > 0) { $w = syswrite($c, $b, $n < 262144 ? $n : 262144) or exit; $n -= $w } } \
    else { syswrite($c, $q, 1) } } exit }' >/dev/null 2>&1 &";

pub fn run() -> Vec<Line> {
    let mut site = Site::new();
    let host = site.host();
    let token = site.json(&["node", "token", "create"])["token"].clone();
    let mut runner = site.runner("node", &["--join", token.as_str().expect("a token is text")]);
    runner.wait_for_line("connected to the host");
    let apart = measure(&site, "host and runner apart", Some((host.pid(), runner.pid())));
    drop((runner, host));
    let mut site = Site::new();
    let _server = site.up();
    let together = measure(&site, "up", None);
    apart.into_iter().chain(together).collect()
}

fn measure(site: &Site, what: &str, pids: Option<(u32, u32)>) -> Vec<Line> {
    site.kr(&["vps", "create", "--name", "web", "--image", DEBIAN]).ok();
    site.kr(&["terminal", "exec", "web", "--", "setsid", "sh", "-c", SERVICE]).ok();
    let container = site.containers()[0].clone();
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let inspect = ["inspect", "--format", format, &container];
    let direct = format!("{}:7000", run_command(Command::new("docker").args(inspect)).ok().trim());
    wait_until("the service answers", Duration::from_secs(10), || {
        TcpStream::connect(&direct).is_ok()
    });
    let (socat_port, _socat) = socat(&direct);
    let (ours_port, _forward) = forward(site);
    let places = [direct, format!("127.0.0.1:{socat_port}"), format!("127.0.0.1:{ours_port}")];
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (rates, place) in rates.iter_mut().zip(&places) {
            rates.push(BYTES as f64 / 1e6 / timed(|| download(place)).as_secs_f64());
        }
    }
    let mut pings = [const { Vec::new() }; 3];
    for (pings, place) in pings.iter_mut().zip(&places) {
        let mut stream = open(place);
        let ping = |_| timed(|| ping(&mut stream)).as_secs_f64() * 1e6;
        *pings = (0..PINGS).map(ping).collect();
    }
    let [direct, socat, ours] = rates;
    let direct = Line::new("download 2 GB, TCP direct", "MB/s", direct);
    let socat = Line::new("download 2 GB, socat", "MB/s", socat).against(&direct);
    let ours = Line::new(format!("download 2 GB, forward ({what})"), "MB/s", ours).against(&socat);
    let [ping_direct, ping_socat, ping_ours] = pings;
    let mut lines = vec![
        direct,
        socat,
        ours,
        Line::new("1 byte there and back, TCP direct", "us", ping_direct),
        Line::new("1 byte there and back, socat", "us", ping_socat),
        Line::new(format!("1 byte there and back, forward ({what})"), "us", ping_ours),
    ];
    if let Some((host, runner)) = pids {
        lines.extend(crowd(&places[2], host, runner));
    }
    lines
}

/// Measures the cost of a thousand open connections, and whether a stalled one slows another.
fn crowd(place: &str, host: u32, runner: u32) -> Vec<Line> {
    let before = (resident(host), resident(runner));
    let mut open: Vec<_> = (0..CONNECTIONS).map(|_| open(place)).collect();
    open.iter_mut().for_each(ping);
    let after = (resident(host), resident(runner));
    let each = |before: f64, after: f64| (after - before) / CONNECTIONS as f64;
    // One asks for two gigabytes and reads none of them.
    open[0].write_all(b"g").expect("it is open");
    std::thread::sleep(Duration::from_millis(500));
    let beside: Vec<f64> =
        (0..PINGS).map(|_| timed(|| ping(&mut open[1])).as_secs_f64() * 1e6).collect();
    vec![
        Line::new("memory of an open connection, host", "KiB", vec![each(before.0, after.0)]),
        Line::new("memory of an open connection, runner", "KiB", vec![each(before.1, after.1)]),
        Line::new("1 byte there and back, one of 1000, another stalled", "us", beside),
    ]
}

fn open(place: &str) -> TcpStream {
    let stream = TcpStream::connect(place).expect("somebody listens");
    stream.set_nodelay(true).expect("a TCP connection");
    stream
}

fn ping(stream: &mut TcpStream) {
    stream.write_all(b"p").expect("it is open");
    stream.read_exact(&mut [0]).expect("it answers");
}

fn download(place: &str) {
    let mut stream = open(place);
    stream.write_all(b"g").expect("it is open");
    let mut buffer = vec![0; 262_144];
    let mut left = BYTES;
    while left > 0 {
        let read = stream.read(&mut buffer).expect("it answers");
        assert!(read > 0, "the download ended early");
        left -= read;
    }
}

/// Returns resident memory in KiB.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// A process that ends with the measurement.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn socat(target: &str) -> (u16, Ending) {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = free.expect("a free port").port();
    let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay");
    let target = format!("TCP:{target},nodelay");
    let child = Command::new("socat").args([listen, target]).spawn().expect("socat is installed");
    let ending = Ending(child);
    wait_until("socat listens", Duration::from_secs(5), || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (port, ending)
}

fn forward(site: &Site) -> (u16, Ending) {
    let mut command = site.command();
    command.args(["forward", "web", "7000:0"]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut line = String::new();
    let output = child.stdout.take().expect("it was piped");
    let ending = Ending(child);
    BufReader::new(output).read_line(&mut line).expect("it tells the port");
    let local = line.split(" -> ").next().unwrap_or_default();
    (local.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port"), ending)
}
