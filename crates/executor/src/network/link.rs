//! Links, addresses and routes of the network namespace that a thread is in.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{Message, Socket, attribute};

/// Size of `struct ifinfomsg`, the fixed part of messages about links.
const LINK: usize = 16;
const CREATE: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
/// Attributes that libc does not name.
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_ISOLATED: u16 = 33;

/// Links of one network namespace.
pub(super) struct Links(Socket);

impl Links {
    /// Opens the namespace that the calling thread is in.
    pub(super) fn open() -> io::Result<Self> {
        Socket::open(libc::NETLINK_ROUTE).map(Self)
    }

    /// Returns the number and the largest packet of a link.
    pub(super) fn find(&mut self, name: &str) -> io::Result<(u32, u32)> {
        let body = self.0.ask(Message::new(libc::RTM_GETLINK, 0, &link(0, 0)).text(libc::IFLA_IFNAME, name))?;
        let word = |bytes: Option<&[u8]>| bytes.and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let index = word(body.get(4..8)).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((index, word(attribute(&body, LINK, libc::IFLA_MTU)).unwrap_or(1500)))
    }

    /// Makes a bridge.
    pub(super) fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        self.0.request(
            Message::new(libc::RTM_NEWLINK, CREATE, &link(0, 0))
                .text(libc::IFLA_IFNAME, name)
                .nest(libc::IFLA_LINKINFO, |m| m.text(libc::IFLA_INFO_KIND, "bridge")),
        )
    }

    /// Makes a cable: one end here, the other in `namespace`.
    pub(super) fn add_veth(&mut self, name: &str, peer: &str, namespace: BorrowedFd<'_>, mtu: u32) -> io::Result<()> {
        let there = namespace.as_raw_fd().to_ne_bytes();
        self.0.request(
            Message::new(libc::RTM_NEWLINK, CREATE, &link(0, 0))
                .text(libc::IFLA_IFNAME, name)
                .with(libc::IFLA_MTU, &mtu.to_ne_bytes())
                .nest(libc::IFLA_LINKINFO, |m| {
                    m.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |m| {
                        m.nest(VETH_INFO_PEER, |m| {
                            m.raw(&link(0, 0))
                                .text(libc::IFLA_IFNAME, peer)
                                .with(libc::IFLA_MTU, &mtu.to_ne_bytes())
                                .with(libc::IFLA_NET_NS_FD, &there)
                        })
                    })
                }),
        )
    }

    /// Turns a link on.
    pub(super) fn up(&mut self, index: u32) -> io::Result<()> {
        let up = u32::try_from(libc::IFF_UP).unwrap_or(1);
        self.0.request(Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link(index, up)))
    }

    /// Plugs a link into a bridge. An isolated one reaches only those that are not isolated.
    pub(super) fn plug(&mut self, index: u32, bridge: u32, isolated: bool) -> io::Result<()> {
        self.0.request(
            Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link(index, 0))
                .with(libc::IFLA_MASTER, &bridge.to_ne_bytes()),
        )?;
        if !isolated {
            return Ok(());
        }
        self.0.request(Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link(index, 0)).nest(
            libc::IFLA_LINKINFO,
            |m| {
                m.text(libc::IFLA_INFO_SLAVE_KIND, "bridge")
                    .nest(libc::IFLA_INFO_SLAVE_DATA, |m| m.with(IFLA_BRPORT_ISOLATED, &[1]))
            },
        ))
    }

    /// Gives a link an address with the length of its network's prefix.
    pub(super) fn address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut fixed = [0_u8; 8];
        fixed[0] = libc::AF_INET as u8;
        fixed[1] = prefix;
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        self.0.request(
            Message::new(libc::RTM_NEWADDR, CREATE, &fixed)
                .with(libc::IFA_LOCAL, &address.octets())
                .with(libc::IFA_ADDRESS, &address.octets()),
        )
    }

    /// Sends everything that is not near to `gateway`.
    pub(super) fn default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut fixed = [0_u8; 12];
        fixed[0] = libc::AF_INET as u8;
        fixed[4] = libc::RT_TABLE_MAIN;
        fixed[5] = libc::RTPROT_STATIC;
        fixed[6] = libc::RT_SCOPE_UNIVERSE;
        fixed[7] = libc::RTN_UNICAST;
        self.0.request(Message::new(libc::RTM_NEWROUTE, CREATE, &fixed).with(libc::RTA_GATEWAY, &gateway.octets()))
    }
}

/// Returns a `struct ifinfomsg`; flags that are set are changed.
fn link(index: u32, flags: u32) -> [u8; LINK] {
    let mut fixed = [0_u8; LINK];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    fixed
}
