//! Port forwarding of both kinds, with services that come, go and stall.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, DEBIAN, Site, wait_until};

/// A running `forward` and the local ports it took.
struct Forward {
    child: std::process::Child,
    ports: Vec<u16>,
}

impl Forward {
    fn start(site: &Site, arguments: &[&str]) -> Self {
        use std::io::{BufRead, BufReader};
        let mut command = site.command();
        command.arg("forward").args(arguments);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = arguments.iter().filter(|word| word.ends_with(":0")).count();
        let ports = (0..wanted).map(|_| {
            let line = lines.next().unwrap().unwrap();
            let local = line.split(" -> ").next().unwrap();
            local.rsplit(':').next().unwrap().parse().unwrap()
        });
        Self { ports: ports.collect(), child }
    }

    fn connect(&self, at: usize) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.ports[at])).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a service in the VPS and leaves it there.
fn serve(site: &Site, words: &str) {
    let script = format!("{words} >/dev/null 2>&1 & echo started");
    site.kr(&["terminal", "exec", "web", "--", "setsid", "sh", "-c", &script]).ok();
}

fn echoes(forward: &Forward, at: usize) -> bool {
    let mut stream = forward.connect(at);
    let mut back = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut back).is_ok() && &back == b"ping"
}

#[test]
fn tcp_reaches_loopback_services_with_half_closes_and_outlives_the_host() {
    let mut site = Site::new();
    let server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    serve(&site, "nc -ll -p 7000 -e cat");
    serve(&site, "nc -ll -p 7001 -e sh -c 'wc -c; echo bye'");
    let forward = Forward::start(&site, &["web", "7000:0", "7001:0", "--local-host", "127.0.0.1"]);
    wait_until("the service is up", Duration::from_secs(5), || echoes(&forward, 0));
    // The answer comes after the end of the question.
    let mut question = forward.connect(1);
    question.write_all(&vec![1; 1_000_000]).unwrap();
    question.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    question.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>(), ["1000000", "bye"]);

    // One that stalls, with all its buffers full, keeps no other waiting.
    let mut stalled = forward.connect(0);
    stalled.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while stalled.write(&[0; 65536]).is_ok() {}
    assert!(echoes(&forward, 0));

    server.kill();
    let _server = site.up();
    assert!(echoes(&forward, 0), "the next connection finds its way");
    assert!(forward.connect(0).write_all(b"x").is_ok());
}

#[test]
fn udp_flows_are_kept_apart_and_a_service_that_comes_later_is_found() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", DEBIAN]).ok();
    let forward = Forward::start(&site, &["web", "5353:0", "--proto", "udp"]);
    let peer = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.connect(("127.0.0.1", forward.ports[0])).unwrap();
        socket
    };
    let (one, two) = (peer(), peer());
    one.send(b"lost, nobody listens").unwrap();
    serve(
        &site,
        "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Proto => \"udp\", LocalAddr => \"127.0.0.1:5353\"); \
         while ($s->recv($d, 65535)) { $s->send(\"<$d>\") }'",
    );
    let mut buffer = vec![0; 65536];
    let mut ask = |socket: &UdpSocket, text: &[u8]| -> Option<Vec<u8>> {
        socket.send(text).ok()?;
        let length = socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    };
    wait_until("the service is up", Duration::from_secs(5), || {
        ask(&one, b"one") == Some(b"<one>".to_vec())
    });
    assert_eq!(ask(&two, b"two"), Some(b"<two>".to_vec()));
    assert_eq!(ask(&one, b""), Some(b"<>".to_vec()), "an empty datagram is one too");
    let large = vec![b'x'; 60_000];
    assert_eq!(ask(&two, &large).map(|answer| answer.len()), Some(60_002));
}

#[test]
fn what_cannot_be_forwarded_is_told_and_costs_only_that_connection() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    site.kr(&["forward", "web", "0"]).fails(2, &["65535"]);
    site.kr(&["forward", "web", "80", "81", "--local-port", "9"]).fails(2, &["REMOTE:LOCAL"]);
    site.kr(&["forward", "nobody", "80"]).fails(1, &["nobody"]);
    let taken = site.port().to_string();
    site.kr(&["forward", "--local-port", &taken, "web", "80"])
        .fails(1, &["cannot be used", "80:0"]);
    let forward = Forward::start(&site, &["web", "7000:0"]);
    let mut refused = forward.connect(0);
    // Nobody listens: the connection ends, the command goes on.
    assert!(!matches!(refused.read(&mut [0; 1]), Ok(1..)));
    serve(&site, "nc -ll -p 7000 -e cat");
    wait_until("the service is up", Duration::from_secs(5), || echoes(&forward, 0));
}
