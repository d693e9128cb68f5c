//! Translates the addresses of steps to the host's own on their way out.
//!
//! The rules are in a table that belongs to the socket it was made by: the kernel removes it when the engine is gone,
//! however it went.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{Message, Socket};

/// Numbers of `linux/netfilter/nfnetlink.h` and `nf_tables.h` that libc does not have for every target.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
const TABLE_OWNER: u32 = 2;
const POST_ROUTING: u32 = 4;
const SOURCE_NAT: u32 = 100;
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const META_OIFNAME: u32 = 7;
const EQUAL: u32 = 0;
const DIFFERENT: u32 = 1;
/// Where an IPv4 header has the source address, and its length.
const SOURCE_ADDRESS: (u32, u32) = (12, 4);
/// Longest name of a link, with the zero that ends it.
const NAME: usize = 16;

/// Address translation that lasts as long as this lives.
pub(super) struct Masquerade {
    _socket: Socket,
}

impl Masquerade {
    /// Translates what comes from a network and leaves by any link but `link`. `table` names the rules.
    pub(super) fn new(table: &str, (network, prefix): (Ipv4Addr, u8), link: &str) -> io::Result<Self> {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
        let chain = "postrouting";
        let family = u8::try_from(libc::NFPROTO_IPV4).unwrap_or(2);
        let create = libc::NLM_F_CREATE | libc::NLM_F_ACK;
        socket.batch(vec![
            Message::new(BATCH_BEGIN, 0, &fixed(0, SUBSYSTEM)),
            Message::new(NEW_TABLE, create | libc::NLM_F_EXCL, &fixed(family, 0))
                .text(1, table)
                .with(2, &TABLE_OWNER.to_be_bytes()),
            Message::new(NEW_CHAIN, create, &fixed(family, 0))
                .text(1, table)
                .text(3, chain)
                .nest(4, |m| m.with(1, &POST_ROUTING.to_be_bytes()).with(2, &SOURCE_NAT.to_be_bytes()))
                .text(7, "nat"),
            Message::new(NEW_RULE, create | libc::NLM_F_APPEND, &fixed(family, 0))
                .text(1, table)
                .text(2, chain)
                .nest(4, |m| rule(m, network, prefix, link)),
            Message::new(BATCH_END, libc::NLM_F_ACK, &fixed(0, SUBSYSTEM)),
        ])?;
        Ok(Self { _socket: socket })
    }
}

/// Returns a `struct nfgenmsg`.
fn fixed(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

fn rule(list: Message, network: Ipv4Addr, prefix: u8, link: &str) -> Message {
    let number = |m: Message, kind: u16, n: u32| m.with(kind, &n.to_be_bytes());
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let mut name = [0_u8; NAME];
    for (to, from) in name.iter_mut().zip(link.bytes().take(NAME - 1)) {
        *to = from;
    }
    let list = expression(list, "payload", |m| {
        let m = number(number(m, 1, REGISTER), 2, NETWORK_HEADER);
        number(number(m, 3, SOURCE_ADDRESS.0), 4, SOURCE_ADDRESS.1)
    });
    let list = expression(list, "bitwise", |m| {
        let m = number(number(number(m, 1, REGISTER), 2, REGISTER), 3, SOURCE_ADDRESS.1);
        m.nest(4, |m| m.with(1, &mask.to_be_bytes())).nest(5, |m| m.with(1, &[0; 4]))
    });
    let list = compare(list, EQUAL, &(network.to_bits() & mask).to_be_bytes());
    let list = expression(list, "meta", |m| number(number(m, 1, REGISTER), 2, META_OIFNAME));
    let list = compare(list, DIFFERENT, &name);
    expression(list, "masq", |m| m)
}

fn compare(list: Message, how: u32, value: &[u8]) -> Message {
    expression(list, "cmp", |m| {
        m.with(1, &REGISTER.to_be_bytes()).with(2, &how.to_be_bytes()).nest(3, |m| m.with(1, value))
    })
}

fn expression(list: Message, name: &str, fill: impl FnOnce(Message) -> Message) -> Message {
    list.nest(1, |m| m.text(1, name).nest(2, fill))
}
