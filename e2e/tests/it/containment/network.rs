//! Whom somebody inside a container reaches.

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, DEBIAN, Site, node_addresses, run, wait_until};

use super::{create, docker, inside, inspect};

fn address(id: &str) -> String {
    inspect(id, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
}

fn reaches(site: &Site, name: &str, address: &str, port: u16) -> bool {
    inside(site, name, &format!("nc -w 2 {address} {port} </dev/null >/dev/null 2>&1")).code == 0
}

#[test]
fn a_vps_reaches_no_other_vps_and_no_port_of_its_node_and_still_reaches_the_world() {
    let mut site = Site::new();
    let _server = site.up();
    let (one, two) = (create(&site, "one", BUSYBOX), create(&site, "two", BUSYBOX));
    // A service inside the one, reachable from the node: it does listen.
    inside(&site, "one", "(while :; do nc -l -p 7001 </dev/null; done) >/dev/null 2>&1 &").ok();
    let (there, other) = (address(&one), address(&two));
    wait_until("the service inside listens", Duration::from_secs(10), || {
        TcpStream::connect((there.as_str(), 7001)).is_ok()
    });
    assert!(!reaches(&site, "two", &there, 7001), "a VPS reaches another");
    let pings = |name: &str, address: &str| {
        inside(&site, name, &format!("ping -c 1 -W 2 {address} >/dev/null 2>&1")).code == 0
    };
    assert!(!pings("two", &there) && !pings("one", &other), "a VPS pings another");
    // Not even its network card: nobody answers who has that address.
    let arping = inside(&site, "two", &format!("arping -f -c 2 -w 2 -I eth0 {there}"));
    assert!(!arping.stdout.contains("Unicast reply"), "{arping:?}");

    // A service of the node on all its addresses, as a host has that several machines use.
    let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let addresses = node_addresses();
    let gateway = inspect(&one, "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}");
    assert!(addresses.contains(&gateway), "{gateway} is no address of {addresses:?}");
    // An address that is gone with another test's network leads outside the node.
    let is_fixed = |address: &String| !site.is_of_another_site(address);
    for address in addresses.into_iter().filter(is_fixed) {
        // With a scope, as an address that is only valid on a link needs one.
        let address = match address.starts_with("fe80") {
            true => format!("{address}%eth0"),
            false => address,
        };
        for port in [port, site.port(), site.ssh_port(), 22, 2375] {
            // A network of another test may have gone: then the address is somewhere outside.
            let reached = reaches(&site, "one", &address, port);
            let is_ours = node_addresses().iter().any(|own| address.starts_with(own));
            assert!(!(reached && is_ours), "{address}:{port}");
        }
    }
    assert!(pings("one", &gateway), "the gateway may be pinged");
    drop(listener);
}

#[test]
fn cloud_metadata_is_out_of_reach_and_so_is_what_the_operator_denies() {
    let outside = Outside::new();
    let mut site = Site::new();
    let server = site.up();
    create(&site, "web", BUSYBOX);
    assert!(reaches(&site, "web", Outside::ADDRESS, Outside::PORT), "what is outside is reached");
    assert!(!reaches(&site, "web", Outside::METADATA, Outside::PORT), "metadata is reached");
    let direct = TcpStream::connect((Outside::METADATA, Outside::PORT));
    assert!(direct.is_ok(), "the node itself reaches it");
    assert_eq!(server.interrupt(), 0);
    let denied = format!("{}/32", Outside::ADDRESS);
    let _server = site.up_with(&["--container-deny", &denied]);
    wait_until("the rule holds", Duration::from_secs(20), || {
        !reaches(&site, "web", Outside::ADDRESS, Outside::PORT)
    });
    drop(outside);
}

/// A machine beside this one that answers on a port, also at the address of cloud metadata.
struct Outside {
    name: String,
}

impl Outside {
    const ADDRESS: &str = "198.18.77.2";
    const METADATA: &str = "169.254.169.254";
    const PORT: u16 = 80;

    fn new() -> Self {
        let name = format!("kr-out-{}", std::process::id());
        let this = Self { name: name.clone() };
        let script = format!(
            "ip netns add {name}
             ip link add krout0 type veth peer name up0 netns {name}
             ip addr add 198.18.77.1/24 dev krout0 && ip link set krout0 up
             ip -n {name} addr add {address}/24 dev up0
             ip -n {name} addr add {metadata}/32 dev up0
             ip -n {name} link set up0 up && ip -n {name} link set lo up
             ip -n {name} route add default via 198.18.77.1
             ip route add {metadata}/32 via {address}
             (ip netns exec {name} busybox httpd -f -p {port} -h / & echo $!) >/dev/null 2>&1",
            address = Self::ADDRESS,
            metadata = Self::METADATA,
            port = Self::PORT,
        );
        run(Command::new("sh").args(["-ec", &script])).ok();
        wait_until("the machine beside this one answers", Duration::from_secs(5), || {
            TcpStream::connect((Self::ADDRESS, Self::PORT)).is_ok()
        });
        this
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let script = format!(
            "for pid in $(ip netns pids {name}); do kill $pid; done
             ip link del krout0; ip netns del {name}",
            name = self.name
        );
        let _ = run(Command::new("sh").args(["-c", &script]));
    }
}

#[test]
fn who_claims_a_neighbours_address_does_not_get_what_is_sent_to_it() {
    let mut site = Site::new();
    let _server = site.up();
    let (victim, _) = (create(&site, "victim", BUSYBOX), create(&site, "thief", DEBIAN));
    let (there, network) = (address(&victim), site.container_network());
    let mac = inspect(&victim, "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}");
    let answers = || {
        TcpStream::connect_timeout(&format!("{there}:1").parse().unwrap(), Duration::from_secs(2))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    assert!(answers());
    // "The victim's address is at my card", and "the victim's card is at my port".
    let own = inside(&site, "thief", "cat /sys/class/net/eth0/address").ok();
    for card in [own.trim(), &mac] {
        let sent =
            site.kr(&["terminal", "exec", "thief", "--", "perl", "-e", CLAIM, card, &there]).ok();
        assert_eq!(sent, "6 frames", "they were never on their way");
    }
    let frames = run(Command::new("bridge").args(["fdb", "show", "br", &network])).ok();
    let at: Vec<_> = frames.lines().filter(|line| line.contains(&mac)).collect();
    assert!(!at.is_empty() && at.iter().all(|line| line.contains("static")), "{frames}");
    let known = run(Command::new("ip").args(["neigh", "show", &there, "dev", &network])).ok();
    assert!(known.contains(&mac) && known.contains("PERMANENT"), "{known}");
    assert!(answers(), "the victim is still the one that is reached");
    // It cannot take on another address or card either.
    for line in ["ip link set eth0 address 02:00:00:00:00:01", "ip addr add 10.9.9.9/24 dev eth0"] {
        assert_ne!(inside(&site, "thief", line).code, 0, "{line}");
    }
    let ports = run(Command::new("ip").args(["-d", "link", "show", "master", &network])).ok();
    assert_eq!(ports.matches("isolated on").count(), 2, "{ports}");
}

/// Sends ARP answers and questions of an address with a card of one's choice, as thieves of addresses
/// do; the arguments are that card and that address.
const CLAIM: &str = r#"
    my $card = pack "H12", $ARGV[0] =~ s/://gr;
    my $address = pack "C4", split /\./, $ARGV[1];
    open my $file, "<", "/sys/class/net/eth0/ifindex" or die;
    my $place = pack "SnlSCCa8", 17, 0x0806, 0 + <$file>, 0, 0, 6, "\xff" x 6;
    socket my $socket, 17, 3, 0x0608 or die $!;
    my $sent = 0;
    for my $kind (1, 2, 1, 2, 1, 2) {
        my $frame = "\xff" x 6 . $card . pack("nnnCCn", 0x0806, 1, 0x0800, 6, 4, $kind)
            . $card . $address . "\xff" x 6 . $address;
        send($socket, $frame, 0, $place) == length $frame or die $!;
        $sent++;
    }
    print "$sent frames";
"#;

#[test]
fn the_engine_tells_no_vps_the_names_of_others_and_names_outside_are_found() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "one", BUSYBOX);
    let other = create(&site, "secret-project", BUSYBOX);
    for name in ["secret-project", &format!("kohakuriver-vps-{other}")] {
        let asked = inside(&site, "one", &format!("timeout 3 nslookup {name} 127.0.0.11"));
        assert!(!asked.stdout.contains(&address(&other)), "{asked:?}");
        let asked = inside(&site, "one", &format!("timeout 3 nslookup {name}"));
        assert!(!asked.stdout.contains(&address(&other)), "{asked:?}");
    }
    let configuration = inside(&site, "one", "cat /etc/resolv.conf").ok();
    assert!(
        configuration.contains("nameserver ") && !configuration.contains("127.0.0.11"),
        "{configuration}"
    );
}

#[test]
fn a_vps_comes_back_whole_when_its_network_or_its_rules_were_removed() {
    let mut site = Site::new();
    let server = site.up();
    let id = create(&site, "web", BUSYBOX);
    let network = site.container_network();
    site.kr(&["vps", "stop", "web"]).ok();
    // As `docker network prune` does.
    docker(&["network", "rm", &network]);
    site.kr(&["vps", "restart", "web"]).ok();
    assert!(!address(&id).is_empty());
    let ports = run(Command::new("ip").args(["-d", "link", "show", "master", &network])).ok();
    assert!(ports.contains("isolated on"), "{ports}");
    // The table stays when the runner goes, and comes back with the next if somebody removed it.
    let table = format!("kohakuriver-{network}");
    let has_table = || run(Command::new("nft").args(["list", "table", "inet", &table])).code == 0;
    assert!(has_table());
    assert_eq!(server.interrupt(), 0);
    assert!(has_table());
    run(Command::new("nft").args(["delete", "table", "inet", &table])).ok();
    let _server = site.up();
    wait_until("the rules are back", Duration::from_secs(15), has_table);
    assert_eq!(inside(&site, "web", "echo well").ok(), "well\n");
}

#[test]
fn disconnected_vps_is_connected_again() {
    let mut site = Site::new();
    let _server = site.up();
    let id = create(&site, "web", BUSYBOX);
    let (network, name) = (site.container_network(), format!("kohakuriver-vps-{id}"));
    let reaches_out = || inside(&site, "web", "ip route | grep -q default").code == 0;
    assert!(reaches_out());
    docker(&["network", "disconnect", &network, &name]);
    assert!(address(&id).is_empty() && !reaches_out());
    // By itself; the runner looks every minute.
    wait_until("it is connected again", Duration::from_secs(180), reaches_out);
    docker(&["network", "disconnect", &network, &name]);
    site.kr(&["vps", "restart", "web"]).ok();
    assert!(!address(&id).is_empty() && reaches_out());
    let ports = run(Command::new("ip").args(["-d", "link", "show", "master", &network])).ok();
    assert!(ports.contains("isolated on"), "{ports}");
}

#[test]
fn a_network_that_is_not_ours_is_never_used() {
    let mut site = Site::new();
    let network = site.container_network();
    docker(&["network", "create", &network]);
    let _server = site.up();
    wait_until("the node says so", Duration::from_secs(15), || {
        let node = site.kr(&["node", "list", "--json"]).ok();
        node.contains(&format!("docker network rm {network}"))
    });
    docker(&["network", "rm", &network]);
    create(&site, "web", BUSYBOX);
}
