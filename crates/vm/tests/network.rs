//! The network of machines in a kernel's own namespaces: what a guest reaches and what it does
//! not, and what is left after whatever happened. Needs root.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/guest.rs"]
mod guest;
#[path = "support/space.rs"]
mod space;

use std::ffi::OsString;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::{Guest, ICMP, PATIENCE, QUIET, TCP, UDP, arp, ethernet, ipv4, ping, syn, udp};
use kohakuriver_model::InstanceId;
use kohakuriver_vm::launch::Launch;
use kohakuriver_vm::network::{
    DEFAULT_SUBNET, Mac, Network, NetworkConfig, NetworkError, Owner, tap_name,
};
use space::Space;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

fn id(number: u64) -> InstanceId {
    InstanceId::from_u64(7_398_213_345_412_345_856 + number)
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 0, number)
}

fn config() -> NetworkConfig {
    NetworkConfig {
        bridge: "kohaku-br0".parse().unwrap(),
        subnet: DEFAULT_SUBNET.parse().unwrap(),
        nameservers: vec![NODE],
        owner: Owner::of(Path::new("/var/lib/kohakuriver")),
    }
}

/// A node, what is outside of it, and the network of the node's machines.
struct World {
    node: Space,
    outside: Space,
    network: Arc<Network>,
}

impl World {
    fn new() -> Self {
        let (node, outside) = (Space::new(), Space::new());
        outside.sh(&format!(
            "ip link add up0 type veth peer name up0 netns {}
             ip addr add {OUTSIDE}/24 dev up0; ip addr add {METADATA}/32 dev lo; ip link set up0 up",
            node.tid()
        ));
        node.sh(&format!(
            "ip addr add {NODE}/24 dev up0; ip link set up0 up; ip route add default via {OUTSIDE}"
        ));
        Self { node, outside, network: Arc::new(Network::new(config())) }
    }

    fn with<T, F>(&self, work: impl FnOnce(Arc<Network>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let network = Arc::clone(&self.network);
        self.node.block_on(move || work(network))
    }

    fn attach(&self, number: u64, address: Ipv4Addr) -> Result<(), NetworkError> {
        self.with(move |network| async move { network.attach(id(number), address, 0).await })
    }

    fn sweep(&self, living: &[u64]) -> Vec<InstanceId> {
        let living: Vec<InstanceId> = living.iter().map(|number| id(*number)).collect();
        self.with(move |network| async move { network.sweep(&living).await.unwrap() })
    }

    /// A guest at the address that has the number.
    fn guest(&self, number: u8) -> Guest {
        self.attach(number.into(), address(number)).unwrap();
        self.plug_in(number)
    }

    fn plug_in(&self, number: u8) -> Guest {
        let tap = tap_name(id(number.into()));
        let guest = self.node.run(move || {
            let mac = Mac::of(address(number)).octets();
            Guest::plug_in(&tap, mac, address(number), Mac::of(GATEWAY).octets())
        });
        self.await_ready(number);
        guest
    }

    /// The kernel takes its time to notice that somebody is there now.
    fn await_ready(&self, number: u8) {
        let tap = tap_name(id(number.into()));
        let ready = format!(
            "bridge link show dev {tap} | grep -q forwarding && ip link show kohaku-br0 | grep -q LOWER_UP"
        );
        self.node.sh(&format!("for i in $(seq 50); do {ready} && exit 0; sleep 0.1; done; exit 1"));
    }

    fn listen_outside(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        self.outside.run(move || listen(address, port))
    }

    fn listen_on_node(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        self.node.run(move || listen(address, port))
    }

    /// What is there of machines' networks.
    fn traces(&self) -> String {
        self.node.sh("ip -o link show | grep -v ' lo:\\| up0' || true
             nft list tables | grep kohaku || true
             for i in iptables iptables-legacy; do $i -S FORWARD | grep kohaku || true; done
             ip neigh show nud permanent")
    }
}

fn listen(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Nothing comes for a while.
fn hears_nothing(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(QUIET)).unwrap();
    let heard = received(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    heard.is_none()
}

/// Who sent it and what, if something comes in time.
fn received(socket: &UdpSocket) -> Option<(Ipv4Addr, Vec<u8>)> {
    let mut data = [0; 100];
    let (length, from) = socket.recv_from(&mut data).ok()?;
    match from.ip() {
        std::net::IpAddr::V4(ip) => Some((ip, data[..length].to_vec())),
        std::net::IpAddr::V6(_) => None,
    }
}

#[test]
fn a_guest_reaches_what_is_outside_under_the_nodes_address_and_hears_the_answer() {
    let world = World::new();
    let server = world.listen_outside(OUTSIDE, 5000);
    let mut guest = world.guest(2);
    guest.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"question"));
    let mut data = [0; 100];
    let (length, from) = server.recv_from(&mut data).unwrap();
    assert_eq!((&data[..length], from.ip()), (&b"question"[..], NODE.into()));
    server.send_to(b"answer", from).unwrap();
    let heard = guest.hear_ip(OUTSIDE, UDP).unwrap();
    assert!(heard.ends_with(b"answer") && heard[2..4] == 4000u16.to_be_bytes());
    // Nobody outside begins.
    world.outside.sh(&format!("ip route add 10.200.0.0/24 via {NODE}"));
    server.send_to(b"uninvited", (address(2), 4001)).unwrap();
    assert!(guest.misses_ip(OUTSIDE, UDP));
}

#[test]
fn a_firewall_that_drops_what_it_does_not_know_lets_guests_through() {
    for program in ["iptables", "iptables-legacy"] {
        let world = World::new();
        world.node.sh(&format!("{program} -P FORWARD DROP; {program} -N DOCKER-USER"));
        let server = world.listen_outside(OUTSIDE, 5000);
        let mut guest = world.guest(2);
        guest.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"x"));
        let (_, _) = received(&server).expect(program);
        world.attach(3, address(3)).unwrap();
        let rules = world.node.sh(&format!("{program} -S FORWARD"));
        assert_eq!(rules.matches("kohaku-br0").count(), 2, "{rules}");
        world.sweep(&[]);
        assert_eq!(world.traces(), "", "{program}");
    }
}

#[test]
fn nothing_of_the_node_is_reached_but_ping_and_the_nameserver() {
    let world = World::new();
    let any = world.listen_on_node(Ipv4Addr::UNSPECIFIED, 5000);
    let dns = world.listen_on_node(NODE, 53);
    let mut guest = world.guest(2);
    let no_nameserver = world.listen_on_node(GATEWAY, 53);
    for target in [GATEWAY, NODE] {
        guest.send_ip(target, UDP, &udp(4000, 5000, b"x"));
        guest.send_ip(target, TCP, &syn((address(2), 4000), (target, 22)));
    }
    assert!(hears_nothing(&any));
    assert!(guest.misses_ip(GATEWAY, TCP));
    assert!(guest.misses_ip(NODE, TCP));
    guest.send_ip(GATEWAY, UDP, &udp(4000, 53, b"x"));
    assert!(hears_nothing(&no_nameserver));

    guest.send_ip(NODE, UDP, &udp(4000, 53, b"name?"));
    assert_eq!(received(&dns), Some((address(2), b"name?".to_vec())));
    guest.send_ip(GATEWAY, ICMP, &ping());
    assert_eq!(guest.hear_ip(GATEWAY, ICMP).map(|reply| reply[0]), Some(0));
    let question = arp(false, guest.mac, guest.address, GATEWAY);
    guest.send(&ethernet([0xff; 6], guest.mac, 0x0806, &question));
    let until = Instant::now() + PATIENCE;
    let answer = std::iter::from_fn(|| guest.hear(until)).find(|frame| frame[12..14] == [8, 6]);
    assert_eq!(answer.unwrap()[22..28], Mac::of(GATEWAY).octets());
}

#[test]
fn the_clouds_metadata_and_the_containers_of_the_node_are_out_of_reach() {
    let world = World::new();
    let (metadata, server) =
        (world.listen_outside(METADATA, 80), world.listen_outside(OUTSIDE, 5000));
    let container = Space::new();
    world.node.sh(&format!(
        "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0
         ip link set docker0 up; ip link add ve0 master docker0 type veth peer name eth0 netns {}
         ip link set ve0 up",
        container.tid()
    ));
    container.sh("ip addr add 172.17.0.2/16 dev eth0; ip link set eth0 up; ip route add default via 172.17.0.1");
    let service = container.run(|| listen(Ipv4Addr::UNSPECIFIED, 80));
    let mut guest = world.guest(2);
    guest.send_ip(METADATA, UDP, &udp(4000, 80, b"secrets?"));
    guest.send_ip(Ipv4Addr::new(172, 17, 0, 2), UDP, &udp(4000, 80, b"x"));
    assert!(hears_nothing(&metadata));
    assert!(hears_nothing(&service));
    guest.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"x"));
    assert!(received(&server).is_some());
}

#[test]
fn a_way_out_that_is_a_bridge_is_a_way_out() {
    let world = World::new();
    world.node.sh(&format!(
        "ip link add br0 type bridge forward_delay 0; ip link set br0 up; ip addr flush dev up0
         ip link set up0 master br0; ip addr add {NODE}/24 dev br0
         ip route add default via {OUTSIDE}"
    ));
    let server = world.listen_outside(OUTSIDE, 5000);
    let mut guest = world.guest(2);
    guest.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"x"));
    assert!(received(&server).is_some());
}

#[test]
fn guests_do_not_reach_each_other_and_the_runner_reaches_both() {
    let world = World::new();
    let (mut one, mut other) = (world.guest(2), world.guest(3));
    let packet = ipv4(one.address, other.address, UDP, &udp(4000, 7722, b"x"));
    let direct = ethernet(other.mac, one.mac, 0x0800, &packet);
    let routed = ethernet(one.gateway, one.mac, 0x0800, &packet);
    let cast = ethernet([0xff; 6], one.mac, 0x0800, &packet);
    let question = arp(false, one.mac, one.address, other.address);
    let asked = ethernet([0xff; 6], one.mac, 0x0806, &question);
    [direct, routed, cast, asked].iter().for_each(|frame| one.send(frame));
    assert_eq!(other.hear(Instant::now() + QUIET), None);

    let runner = world.listen_on_node(Ipv4Addr::UNSPECIFIED, 6000);
    for guest in [&mut one, &mut other] {
        runner.send_to(b"hello", (guest.address, 7722)).unwrap();
        assert!(guest.hear_ip(GATEWAY, UDP).unwrap().ends_with(b"hello"));
        guest.send_ip(GATEWAY, UDP, &udp(7722, 6000, b"agent"));
        assert_eq!(received(&runner), Some((guest.address, b"agent".to_vec())));
    }
}

#[test]
fn a_guest_cannot_use_anothers_address_nor_speak_anything_but_ipv4() {
    let world = World::new();
    let (mut thief, mut victim) = (world.guest(2), world.guest(3));
    let server = world.listen_outside(OUTSIDE, 5000);
    let (mac, gateway) = (thief.mac, thief.gateway);
    let packet = |from| ipv4(from, OUTSIDE, UDP, &udp(4000, 5000, b"x"));
    let vlan = [&[0, 5, 8, 0][..], &packet(victim.address)].concat();
    let vlan_zero = [&[0, 0, 8, 0][..], &packet(victim.address)].concat();
    let claim = |mac, address| ethernet([0xff; 6], mac, 0x0806, &arp(true, mac, address, GATEWAY));
    let lies = [
        ethernet(gateway, mac, 0x0800, &packet(victim.address)),
        ethernet(gateway, victim.mac, 0x0800, &packet(victim.address)),
        ethernet(gateway, victim.mac, 0x0800, &packet(thief.address)),
        ethernet(gateway, mac, 0x0800, &packet(address(77))),
        ethernet(gateway, mac, 0x0800, &packet(NODE)),
        ethernet(gateway, mac, 0x8100, &vlan),
        ethernet(gateway, mac, 0x8100, &vlan_zero),
        ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &[0x60; 60]),
        claim(mac, victim.address),
        claim(mac, GATEWAY),
        claim(victim.mac, victim.address),
        // The frame is its own, the claim inside is not.
        ethernet([0xff; 6], mac, 0x0806, &arp(true, victim.mac, thief.address, GATEWAY)),
    ];
    lies.iter().for_each(|frame| thief.send(frame));
    assert!(hears_nothing(&server));

    let runner = world.listen_on_node(Ipv4Addr::UNSPECIFIED, 6000);
    runner.send_to(b"for you alone", (victim.address, 7722)).unwrap();
    assert!(victim.hear_ip(GATEWAY, UDP).is_some());
    assert!(thief.misses_ip(GATEWAY, UDP));
    // Its own word still counts.
    thief.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"x"));
    assert!(received(&server).is_some());
}

#[test]
fn the_last_guest_takes_everything_along_and_the_others_nothing() {
    let world = World::new();
    let mut stays = world.guest(2);
    let _goes = world.guest(3);
    let detach = |number| {
        world.with(move |network| async move { network.detach(id(number)).await.unwrap() });
    };
    detach(3);
    detach(3);
    let neighbours = world.node.sh("ip neigh show nud permanent dev kohaku-br0");
    assert_eq!(neighbours.lines().count(), 1, "{neighbours}");
    let server = world.listen_outside(OUTSIDE, 5000);
    stays.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"x"));
    assert!(received(&server).is_some());
    detach(2);
    assert_eq!(world.traces(), "");
    detach(2);
    // And it begins anew.
    world.guest(2).send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"again"));
    assert!(received(&server).is_some());
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    let world = World::new();
    let mut guest = world.guest(2);
    world
        .node
        .sh("nft flush ruleset; iptables -P FORWARD DROP; echo 0 > /proc/sys/net/ipv4/ip_forward");
    world.with(|network| async move { network.repair().await.unwrap() });
    let server = world.listen_outside(OUTSIDE, 5000);
    guest.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"x"));
    assert!(received(&server).is_some());
    let list = "nft list ruleset | sed 's/packets.*//'";
    let rules = world.node.sh(list);
    world.with(|network| async move { network.repair().await.unwrap() });
    assert_eq!(world.node.sh(list), rules);
}

#[test]
fn a_bridge_that_was_removed_under_its_guests_comes_back() {
    let world = World::new();
    let mut one = world.guest(2);
    world.node.sh("ip link del kohaku-br0");
    // With the next guest, and with a repair.
    let mut other = world.guest(3);
    world.await_ready(2);
    world.node.sh("ip link del kohaku-br0");
    world.with(|network| async move { network.repair().await.unwrap() });
    world.await_ready(2);
    world.await_ready(3);
    let server = world.listen_outside(OUTSIDE, 5000);
    for guest in [&mut one, &mut other] {
        guest.send_ip(OUTSIDE, UDP, &udp(4000, 5000, b"x"));
        assert!(received(&server).is_some());
    }
    let runner = world.listen_on_node(Ipv4Addr::UNSPECIFIED, 6000);
    runner.send_to(b"hello", (address(2), 7722)).unwrap();
    assert!(one.hear_ip(GATEWAY, UDP).is_some());
    assert!(other.misses_ip(GATEWAY, UDP));
    world.sweep(&[]);
    assert_eq!(world.traces(), "");
}

#[test]
fn a_runner_that_was_killed_anywhere_leaves_nothing_that_stands_in_the_way() {
    let world = World::new();
    let whole = Instant::now();
    world.attach(2, address(2)).unwrap();
    let whole = whole.elapsed();
    world.sweep(&[]);
    for step in 0..40u32 {
        let cut = whole * step / 36;
        let done = world.with(move |network| async move {
            tokio::time::timeout(cut, network.attach(id(2), address(2), 0)).await.is_ok()
        });
        if step % 2 == 0 {
            world.attach(2, address(2)).unwrap();
            drop(world.plug_in(2));
            assert_eq!(world.sweep(&[2]), []);
        } else if done {
            let cut = whole * step / 72;
            world.with(move |network| async move {
                let _ = tokio::time::timeout(cut, network.detach(id(2))).await;
            });
        }
        world.sweep(&[]);
        assert_eq!(world.traces(), "", "cut after {cut:?}");
    }
}

#[test]
fn half_of_what_was_to_be_made_is_gone_on_with_or_swept() {
    let tap = tap_name(id(2));
    let halves = [
        "ip link add kohaku-br0 type bridge".to_owned(),
        format!("ip tuntap add dev {tap} mode tap"),
        format!("ip link add kohaku-br0 type bridge; ip tuntap add dev {tap} mode tap user 1"),
    ];
    for half in halves {
        let world = World::new();
        world.node.sh(&half);
        world.attach(2, address(2)).expect(&half);
        world.sweep(&[]);
        assert_eq!(world.traces(), "", "{half}");
        world.node.sh(&half);
        world.sweep(&[]);
        assert_eq!(world.traces(), "", "{half}");
    }
}

#[test]
fn what_is_not_ours_is_neither_used_nor_removed() {
    let world = World::new();
    let devices = |world: &World| world.node.sh("ip -br link show | awk '{print $1}'");
    let error = |world: &World| {
        let before = devices(world);
        let error = world.attach(2, address(2)).unwrap_err();
        world.sweep(&[]);
        assert_eq!(devices(world), before);
        error.to_string()
    };
    for (made, word) in [
        ("ip tuntap add dev kohaku-br0 mode tap", "is no bridge"),
        (
            "ip link add kohaku-br0 type bridge; ip link set kohaku-br0 up",
            "not made by this runner",
        ),
        (
            "ip link add kohaku-br0 type bridge; ip addr add 10.3.0.1/24 dev kohaku-br0",
            "not made by",
        ),
        ("ip link add kohaku-br0 type bridge; ip link set kohaku-br0 alias lan", "not made by"),
        (
            "ip link add kohaku-br0 type bridge; ip tuntap add t0 mode tap; ip link set t0 master kohaku-br0",
            "not made by",
        ),
        (
            "ip link add kohaku-br0 type bridge; ip link set kohaku-br0 alias kohakuriver:0123",
            "another runner",
        ),
    ] {
        world.node.sh(made);
        let told = error(&world);
        assert!(told.contains(word) && told.contains("another bridge name"), "{made}: {told}");
        world.node.sh("ip link del kohaku-br0; ip link del t0 2>/dev/null || true");
    }
    let tap = tap_name(id(2));
    world.node.sh(&format!("ip tuntap add dev {tap} mode tap; ip link set {tap} alias mine"));
    assert!(error(&world).contains(&format!("ip link del {tap}")));
}

#[test]
fn a_subnet_that_the_node_uses_otherwise_is_refused() {
    for (made, told) in [
        (
            "ip addr add 10.200.0.9/32 dev up0",
            "10.200.0.0/24 overlaps the address 10.200.0.9/32 of up0",
        ),
        ("ip addr add 10.0.0.1/8 dev up0", "the address 10.0.0.1/8 of up0"),
        ("ip route add 10.200.0.128/25 via 198.18.0.1", "the route to 10.200.0.128/25"),
        ("ip route add 10.0.0.0/8 via 198.18.0.1", "the route to 10.0.0.0/8"),
        ("ip route add blackhole 10.200.0.7", "the route to 10.200.0.7"),
    ] {
        let world = World::new();
        world.node.sh(made);
        let error = world.attach(2, address(2)).unwrap_err().to_string();
        assert!(error.contains(told), "{made}: {error}");
        assert_eq!(world.traces(), "", "{made}");
    }
}

#[test]
fn addresses_are_given_to_one_guest_and_the_subnet_changes_only_without_guests() {
    let world = World::new();
    let _guest = world.guest(2);
    let taken = world.attach(3, address(2)).unwrap_err();
    assert!(matches!(taken, NetworkError::AddressTaken { id: other, .. } if other == id(2)));
    for bad in [GATEWAY, address(0), address(255), Ipv4Addr::new(10, 201, 0, 5)] {
        assert!(matches!(world.attach(3, bad), Err(NetworkError::BadAddress { .. })), "{bad}");
    }
    let elsewhere = || NetworkConfig { subnet: "10.201.0.0/24".parse().unwrap(), ..config() };
    let moved = world.node.block_on(move || async move {
        Network::new(elsewhere()).attach(id(3), Ipv4Addr::new(10, 201, 0, 5), 0).await
    });
    let error = moved.unwrap_err().to_string();
    assert!(error.contains("has 10.200.0.1/24, not 10.201.0.0/24"), "{error}");
    world.sweep(&[]);
    // An empty bridge that a crash left moves along.
    world.node.sh(&format!(
        "ip link add kohaku-br0 type bridge; ip addr add 10.200.0.1/24 dev kohaku-br0
         ip link set kohaku-br0 alias kohakuriver:{}",
        owner_text()
    ));
    world.node.block_on(move || async move {
        let network = Network::new(elsewhere());
        network.attach(id(3), Ipv4Addr::new(10, 201, 0, 5), 0).await.unwrap();
    });
    assert!(!world.node.sh("ip addr show kohaku-br0").contains("10.200.0.1"));
}

/// The owner as a bridge's alias has it.
fn owner_text() -> String {
    let world = World::new();
    world.attach(2, address(2)).unwrap();
    let alias = world.node.sh("cat /dev/null; ip -j link show kohaku-br0");
    alias.split("kohakuriver:").nth(1).unwrap().chars().take(16).collect()
}

#[test]
fn a_qemu_that_is_nobody_is_given_its_tap_and_no_other() {
    let world = World::new();
    world.attach(2, address(2)).unwrap();
    let nic = world.network.nic(id(2), address(2), 7722);
    let dir = tempfile::tempdir().unwrap();
    let launch = Launch {
        dir: dir.path().to_owned(),
        record: "started".into(),
        user: Some(1_900_000_002),
        tap: nic.tap,
        ..Launch::default()
    };
    let qemu = "-nodefaults -display none -M q35 -accel tcg -m 64 -sandbox on,spawn=deny -S";
    let args: Vec<OsString> =
        qemu.split(' ').map(OsString::from).chain(nic.args.iter().map(OsString::from)).collect();
    let words = launch.to_args(Path::new("qemu-system-x86_64"), &args);
    let program = std::env::current_exe().unwrap();
    let launcher = program.parent().unwrap().with_file_name("examples").join("launch");
    let start = move || {
        let mut command = Command::new(launcher);
        command.args(&words[1..]).env("PATH", "/usr/local/bin:/usr/bin").stdin(Stdio::null());
        command.spawn().expect("cargo build --example launch first")
    };
    let qemu = Kill(world.node.run(start));
    let carrier = format!("ip link show {} | grep -q LOWER_UP", tap_name(id(2)));
    world.node.sh(&format!("for i in $(seq 150); do {carrier} && exit 0; sleep 0.1; done; exit 1"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", qemu.0.id())).unwrap();
    assert!(status.contains("Uid:\t1900000002\t1900000002"), "{status}");
    // What goes to the machine while it runs is QEMU's alone: the TAP cannot be opened twice.
    let tap = tap_name(id(2));
    let busy = world.node.run(move || kohakuriver_vm::network::inherit_tap(&tap).unwrap_err());
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
}

#[test]
fn qemu_takes_a_user_mode_card() {
    use kohakuriver_vm::network::user::{Outward, free_port, nic};
    let world = World::new();
    for outward in [Outward::Closed, Outward::Open] {
        let port = world.node.run(|| free_port(None).unwrap());
        assert_eq!(world.node.run(move || free_port(Some(port)).unwrap()), port);
        let args = nic(port, 7722, outward).args;
        let child = world.node.run(move || {
            Command::new("qemu-system-x86_64")
                .args(["-nodefaults", "-display", "none", "-M", "q35", "-accel", "tcg", "-m", "64"])
                .args(["-sandbox", "on", "-S"])
                .args(args)
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        });
        let _ends = Kill(child);
        world.node.run(move || {
            let deadline = Instant::now() + PATIENCE;
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                assert!(Instant::now() < deadline, "QEMU does not listen for the agent");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    }
}

struct Kill(std::process::Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
