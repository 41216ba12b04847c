//! A container's port in a kernel's own namespaces: what pinning does to it. Needs root.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/space.rs"]
mod space;

use kohakuriver_vm::network::{BorderConfig, ContainerBorder, NetworkError, Plug};
use space::Space;

const MAC: &str = "02:42:ac:1e:00:02";
const ADDRESS: &str = "172.30.0.2";

/// A node with a bridge, and a container with an end of it.
fn world() -> (Space, Space) {
    let (node, container) = (Space::new(), Space::new());
    node.sh(
        "ip link add krc0 type bridge; ip addr add 172.30.0.1/24 dev krc0; ip link set krc0 up",
    );
    node.sh(&format!(
        "ip link add port0 type veth peer name eth0 address {MAC} netns {}
         ip link set port0 master krc0 up",
        container.tid()
    ));
    container.sh(&format!("ip addr add {ADDRESS}/24 dev eth0; ip link set eth0 up"));
    (node, container)
}

fn pin(node: &Space, container: &Space, hide_neighbours: bool) -> Result<(), NetworkError> {
    let plug = Plug {
        pid: container.tid(),
        mac: MAC.parse().unwrap(),
        address: ADDRESS.parse().unwrap(),
        hide_neighbours,
    };
    node.block_on(move || async move {
        let config = BorderConfig {
            bridge: "krc0".parse().unwrap(),
            nameservers: Vec::new(),
            denied: Vec::new(),
        };
        ContainerBorder::new(config).pin(&plug).await
    })
}

#[test]
fn a_pinned_port_is_isolated_and_its_addresses_are_nobody_elses() {
    let (node, container) = world();
    pin(&node, &container, false).unwrap();
    let names = container.sh("ip route get 127.0.0.11");
    assert!(names.contains("dev lo"), "{names}");
    // Again, as after a restart of the runner.
    pin(&node, &container, true).unwrap();
    let port = node.sh("bridge -d link show dev port0");
    assert!(port.contains("isolated on") && port.contains("learning off"), "{port}");
    let known = node.sh("ip neigh show dev krc0 nud permanent");
    assert!(known.contains(&format!("{ADDRESS} lladdr {MAC}")), "{known}");
    let frames = node.sh("bridge fdb show dev port0");
    let line = frames.lines().find(|line| line.contains(MAC)).unwrap();
    assert!(line.contains("master krc0") && line.contains("static"), "{frames}");
    let refused = container.sh("ip route get 127.0.0.11 2>&1 || true");
    assert!(refused.contains("Permission denied"), "{refused}");
    assert!(container.sh("ip route get 127.0.0.1").contains("dev lo"));
}

#[test]
fn a_port_that_is_not_on_the_bridge_and_a_container_that_has_gone_are_told() {
    let (node, container) = world();
    node.sh("ip link set port0 nomaster");
    let told = pin(&node, &container, true);
    assert!(matches!(told, Err(NetworkError::PortMissing { .. })), "{told:?}");
    let gone = container.tid();
    drop(container);
    let plug = Plug {
        pid: gone,
        mac: MAC.parse().unwrap(),
        address: ADDRESS.parse().unwrap(),
        hide_neighbours: true,
    };
    let told = node.block_on(move || async move {
        let bridge = "krc0".parse().unwrap();
        let config = BorderConfig { bridge, nameservers: Vec::new(), denied: Vec::new() };
        ContainerBorder::new(config).pin(&plug).await
    });
    assert!(matches!(told, Err(NetworkError::Inside { .. })), "{told:?}");
}
