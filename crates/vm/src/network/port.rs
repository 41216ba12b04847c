//! A container's port on the bridge, and the way to its engine's nameserver, by netlink.
//!
//! Programs would do the same with five starts of a process for each container; here it is a
//! handful of messages. The part that is inside the container's network is done by a thread of
//! its own, since a thread that has changed its network cannot go back to serving others.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::{io, thread};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, LinkBridgePort, RouteMessageBuilder, new_connection};
use tokio::sync::oneshot;

use super::{BridgeName, Mac, NetworkError};

/// Docker's nameserver in every network that is not its default one.
const ENGINE_NAMES: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The kernel's table of its own addresses, which is asked before all others.
const LOCAL_TABLE: u32 = 255;
/// What `bridge fdb ... static` writes: it neither ages nor is asked for.
const STATIC: NeighbourState = NeighbourState::Other(0x42);

/// A connection to the kernel, for the network that the calling thread is in.
pub(super) fn here() -> io::Result<Handle> {
    let (connection, handle, _) = new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A connection to the kernel for the network that a process is in. Nothing of it is run.
pub(super) async fn of_process(pid: i32) -> io::Result<Handle> {
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    // A number that the kernel has given to another process meanwhile.
    if network.metadata()?.ino() == File::open("/proc/thread-self/ns/net")?.metadata()?.ino() {
        return Err(io::Error::other("the container has ended"));
    }
    let runtime = tokio::runtime::Handle::current();
    let (tell, told) = oneshot::channel();
    thread::Builder::new().name("netlink".to_owned()).spawn(move || {
        let _ = tell.send(connect_in(&network, &runtime));
    })?;
    told.await.map_err(io::Error::other)?
}

fn connect_in(network: &File, runtime: &tokio::runtime::Handle) -> io::Result<Handle> {
    setns(network, CloneFlags::CLONE_NEWNET)?;
    let _runtime = runtime.enter();
    here()
}

/// The indices of the bridge and of its port whose other end is inside.
pub(super) async fn find(
    outside: &Handle,
    inside: &Handle,
    bridge: &BridgeName,
) -> Result<(u32, u32), NetworkError> {
    let named = outside.link().get().match_name(bridge.as_str()).execute().try_next().await;
    let named = named.map_err(kernel("find the containers' bridge"))?;
    let bridge_index = named.map(|link| link.header.index);
    let ends: Vec<LinkMessage> =
        inside.link().get().execute().try_collect().await.map_err(kernel("look inside"))?;
    for peer in ends.iter().filter(|link| is_veth(link)).filter_map(peer) {
        // An error is that there is no such device.
        let port = outside.link().get().match_index(peer).execute().try_next().await;
        let master = port.ok().flatten().as_ref().and_then(master);
        if let Some(bridge_index) = bridge_index.filter(|index| master == Some(*index)) {
            return Ok((bridge_index, peer));
        }
    }
    Err(NetworkError::PortMissing { bridge: bridge.clone() })
}

/// Isolates the port, and writes down whose it is.
pub(super) async fn pin(
    outside: &Handle,
    (bridge, port): (u32, u32),
    mac: Mac,
    address: Ipv4Addr,
) -> Result<(), NetworkError> {
    let flags = LinkBridgePort::new(port).isolated(true).learning(false).build();
    let isolated = outside.link().set_port(flags).execute().await;
    isolated.map_err(kernel("isolate the container's port"))?;
    let neighbours = outside.neighbours();
    let mac = mac.octets();
    let known = neighbours
        .add(bridge, IpAddr::V4(address))
        .link_layer_address(&mac)
        .state(NeighbourState::Permanent)
        .replace();
    known.execute().await.map_err(kernel("write down the container's address"))?;
    let known =
        neighbours.add_bridge(port, &mac).state(STATIC).flags(NeighbourFlags::Controller).replace();
    known.execute().await.map_err(kernel("write down the container's port"))
}

/// Closes the way to the engine's nameserver, which tells each container the names and addresses
/// of all others. A route, not a rule of the firewall: it also holds for packets that somebody
/// with a raw socket puts on the loopback device. Only the network's administrator, whom nobody in a
/// container is, can take it back.
pub(super) async fn hide_engine_names(inside: &Handle) -> Result<(), NetworkError> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(ENGINE_NAMES, 32)
        .table_id(LOCAL_TABLE)
        .kind(RouteType::Prohibit)
        .build();
    let closed = inside.route().add(route).replace().execute().await;
    closed.map_err(kernel("keep the container from the engine's nameserver"))
}

fn kernel(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Kernel { what, source }
}

fn is_veth(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.contains(&LinkInfo::Kind(InfoKind::Veth)))
    })
}

fn peer(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Link(index) = attribute { Some(*index) } else { None }
    })
}

fn master(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Controller(index) = attribute { Some(*index) } else { None }
    })
}
