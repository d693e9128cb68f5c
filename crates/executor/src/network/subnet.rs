//! The addresses of an isolated network.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A network of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl FromStr for Subnet {
    type Err = String;

    /// Reads `10.1.0.0/16`; there must be room for a gateway and a step.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("invalid subnet {text:?}, write for example \"10.10.0.0/16\"");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(8..=30).contains(&prefix) {
            return Err(bad());
        }
        let subnet = Self { network: address, prefix };
        Ok(Self { network: Ipv4Addr::from_bits(address.to_bits() & subnet.mask()), prefix })
    }
}

impl Subnet {
    /// Networks to choose from when none is given: sixteen parts of one that few use.
    pub(super) fn candidates() -> impl Iterator<Item = Self> {
        (0..16).map(|n| Self { network: Ipv4Addr::new(10, 231, n << 4, 0), prefix: 20 })
    }

    /// Returns network address and length of the prefix.
    pub(super) fn parts(self) -> (Ipv4Addr, u8) {
        (self.network, self.prefix)
    }

    /// Returns the host's own address.
    pub(super) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }

    /// Returns whether a table of routes, in the form of `/proc/net/route`, has one into this network.
    pub(super) fn is_routed(self, routes: &str) -> bool {
        routes.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace();
            let mut number = |n| fields.nth(n).and_then(|f| u32::from_str_radix(f, 16).ok()).map(u32::swap_bytes);
            let (Some(to), Some(mask)) = (number(1), number(5)) else { return false };
            let mask = mask & self.mask();
            mask != 0 && (to ^ self.network.to_bits()) & mask == 0
        })
    }
}

/// Which addresses are free.
pub(super) struct Addresses {
    subnet: Subnet,
    used: HashSet<u32>,
    next: u32,
}

impl Addresses {
    pub(super) fn new(subnet: Subnet) -> Self {
        Self { subnet, used: HashSet::new(), next: 2 }
    }

    /// Takes an address; one that was given back comes again as late as possible, since the kernel still takes it down.
    pub(super) fn take(&mut self) -> Option<Ipv4Addr> {
        let size = !self.subnet.mask();
        for _ in 2..size {
            let offset = self.next;
            self.next = if self.next + 1 >= size { 2 } else { self.next + 1 };
            if self.used.insert(offset) {
                return Some(Ipv4Addr::from_bits(self.subnet.network.to_bits() + offset));
            }
        }
        None
    }

    /// Gives an address back.
    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&(address.to_bits() - self.subnet.network.to_bits()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read() {
        let subnet: Subnet = "10.1.2.3/16".parse().unwrap();
        assert_eq!(subnet.parts(), (Ipv4Addr::new(10, 1, 0, 0), 16));
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 1, 0, 1));
        for bad in ["", "10.0.0.0", "10.0.0.0/31", "10.0.0.0/4", "x/16", "::/16"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_address_is_given_once_and_comes_again_late() {
        let mut addresses = Addresses::new("10.0.0.0/29".parse().unwrap());
        let all: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(all.iter().map(|a| a.octets()[3]).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        addresses.give_back(all[3]);
        addresses.give_back(all[0]);
        assert_eq!(addresses.take(), Some(all[0]));
        assert_eq!(addresses.take(), Some(all[3]));
        assert_eq!(addresses.take(), None);
    }

    #[test]
    fn routes_into_a_network_are_seen() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let route = |to: &str, mask: &str| format!("{head}e\t{to}\t00000000\t1\t0\t0\t0\t{mask}\t0\t0\t0\n");
        let subnet: Subnet = "10.231.0.0/20".parse().unwrap();
        assert!(!subnet.is_routed(&route("00000000", "00000000")), "the default route is everywhere");
        assert!(subnet.is_routed(&route("0000E70A", "0000FFFF")), "10.231.0.0/16");
        assert!(subnet.is_routed(&route("0001E70A", "00FFFFFF")), "10.231.1.0/24");
        assert!(!subnet.is_routed(&route("0010E70A", "00F0FFFF")), "10.231.16.0/20");
    }
}
