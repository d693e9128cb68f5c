//! Networks behind a bridge, from which steps reach what the host reaches, by its address.
//!
//! The bridge is in a namespace of its own, which one cable joins with the host's. That namespace is held by a descriptor
//! alone, and the rules for addresses by a socket: when the engine is gone, so are cable, bridge and rules.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::link::Links;
use super::masquerade::Masquerade;
use super::pool::{Made, Maker};
use super::subnet::{Addresses, Subnet};
use super::{namespace, resolver};

/// How long what an engine of the same name left may take to be gone, and how often it is looked at.
const GONE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
const ROUTES: &str = "/proc/net/route";
/// Names in the bridge's own namespace and in those of steps.
const BRIDGE: &str = "bridge";
const UPLINK: &str = "uplink";
const STEP: &str = "eth0";

/// A bridge and the way from it to the host.
pub(super) struct Bridge {
    hub: OwnedFd,
    bridge: u32,
    mtu: u32,
    subnet: Subnet,
    addresses: Arc<Mutex<Addresses>>,
    number: AtomicU64,
    _masquerade: Masquerade,
}

impl Bridge {
    /// Makes the bridge. `name` is that of the host's end of its cable and of the rules.
    pub(super) fn new(name: &str, subnet: Option<Subnet>) -> io::Result<Self> {
        if name.is_empty() || name.len() > 15 || name.contains(['/', ':', '%']) || name.contains(char::is_whitespace) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of a link")));
        }
        let routes = std::fs::read_to_string(ROUTES).unwrap_or_default();
        let subnet = subnet
            .or_else(|| Subnet::candidates().find(|subnet| !subnet.is_routed(&routes)))
            .ok_or_else(|| io::Error::other("every subnet to choose from is in use, name one"))?;
        let mut host = Links::open()?;
        let mtu = way_out(&routes).and_then(|link| host.find(link).ok()).map_or(1500, |(_, mtu)| mtu);
        let make = || {
            namespace::make(Links::open, |hub, links, mut host| {
                host.add_veth(name, UPLINK, hub.as_fd(), mtu)?;
                links.add_bridge(BRIDGE)?;
                let (bridge, _) = links.find(BRIDGE)?;
                let (uplink, _) = links.find(UPLINK)?;
                links.plug(uplink, bridge, false)?;
                links.up(uplink)?;
                links.up(bridge)?;
                Ok(bridge)
            })
        };
        let (hub, bridge) = patiently(make)?;
        let (link, _) = host.find(name)?;
        host.address(link, subnet.gateway(), subnet.parts().1)?;
        host.up(link)?;
        let masquerade = patiently(|| Masquerade::new(name, subnet.parts(), name))?;
        let addresses = Arc::new(Mutex::new(Addresses::new(subnet)));
        Ok(Self { hub, bridge, mtu, subnet, addresses, number: AtomicU64::new(0), _masquerade: masquerade })
    }
}

/// Tries again while what bears the same name is still being taken down.
fn patiently<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match make() {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && begun.elapsed() < GONE => {
                std::thread::sleep(LOOK);
            }
            made => return made,
        }
    }
}

/// Returns the link that the default route leads to.
fn way_out(routes: &str) -> Option<&str> {
    let mut fields = routes.lines().skip(1).map(str::split_whitespace);
    fields.find_map(|mut line| {
        let link = line.next()?;
        (line.next() == Some("00000000")).then_some(link)
    })
}

/// An address that is in use.
struct Leased {
    address: Ipv4Addr,
    addresses: Arc<Mutex<Addresses>>,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.address);
    }
}

impl Maker for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn make(&self) -> io::Result<Made> {
        let address = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).take();
        let address = address.ok_or_else(|| io::Error::other("no address of the subnet is free"))?;
        let leased = Leased { address, addresses: self.addresses.clone() };
        let port = format!("p{}", self.number.fetch_add(1, Ordering::Relaxed));
        let (gateway, (_, prefix)) = (self.subnet.gateway(), self.subnet.parts());
        let hub = || {
            rustix::thread::move_into_link_name_space(
                self.hub.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            Links::open()
        };
        let (namespace, ()) = namespace::make(hub, |own, links, mut hub| {
            hub.add_veth(&port, STEP, own.as_fd(), self.mtu)?;
            let (index, _) = hub.find(&port)?;
            hub.plug(index, self.bridge, true)?;
            hub.up(index)?;
            let (inside, _) = links.find(STEP)?;
            links.address(inside, address, prefix)?;
            links.up(inside)?;
            links.default_route(gateway)
        })?;
        Ok(Made { namespace, guard: Box::new(leased) })
    }

    fn resolv_conf(&self) -> Vec<u8> {
        resolver::reachable()
    }
}
