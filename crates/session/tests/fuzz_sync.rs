//! Transfers with peers that break the rules in ways nobody thought of: packets from fixed seeds, good ones mutated. The
//! receiver and the sender answer, never panic, never hang, and write nowhere but into their directory.
//!
//! `KILN_FUZZ_SECONDS=n` goes on for so long; `KILN_FUZZ_SEED=n` begins at a seed, which what fails names.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::stream;
use kiln_session::client::DirWriter;
use kiln_session::proto::fs::packet::PacketType;
use kiln_session::proto::fs::{Packet, Stat};
use kiln_session::stat::go;
use kiln_session::transfer::{Ending, receive, send};
use kiln_session::tree::DirTree;
use kiln_session::{SessionError, TransferOptions};
use prost::Message;
use tokio::sync::mpsc;

/// Seeds of a run without the variable.
const FEW: u64 = 400;
/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

const NAMES: [&str; 14] =
    ["a", "b", "a/b", "a/c", "a-b", "..", "../x", "a/../../x", "/etc/x", "a//b", ".", "", "link", "link/x"];

/// A small generator of numbers, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

fn packet(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}

fn entry(path: &str, mode: u32, link: &str, size: i64) -> Packet {
    let stat = Stat { path: path.into(), mode, linkname: link.into(), size, ..Stat::default() };
    Packet { stat: Some(stat), ..packet(PacketType::PacketStat) }
}

fn data(id: u32, data: &'static [u8]) -> Packet {
    Packet { id, data: data.into(), ..packet(PacketType::PacketData) }
}

/// What an honest sender says.
fn honest() -> Vec<Packet> {
    let dir = go::DIR | 0o755;
    vec![
        entry("a", dir, "", 0),
        entry("a/b", 0o644, "", 3),
        entry("a/c", dir, "", 0),
        entry("a/c/d", 0o4755, "", 6),
        entry("a-b", 0o600, "a/b", 3),
        entry("link", go::SYMLINK | 0o777, "../outside", 0),
        entry("pipe", go::NAMED_PIPE | 0o600, "", 0),
        packet(PacketType::PacketStat),
        data(1, b"one"),
        data(1, b""),
        data(3, b"three "),
        data(3, b""),
        packet(PacketType::PacketFin),
    ]
}

/// Changes some packets: others' places, fields, bytes.
fn mutate(random: &mut Random, mut packets: Vec<Packet>) -> Vec<Packet> {
    for _ in 0..=random.below(4) {
        let at = random.below(packets.len());
        let mut other = packets[at].clone();
        match random.below(8) {
            0 => drop(packets.remove(at)),
            1 => packets.insert(random.below(packets.len()), other),
            2 => packets.insert(at, entry(random.pick(&NAMES), random.pick(&MODES), random.pick(&NAMES), 1)),
            3 => packets[at].id = random.pick(&[0, 1, 2, 3, 7, u32::MAX]),
            4 => packets[at].r#type = random.pick(&[-1, 0, 1, 2, 3, 4, 5, 77]),
            5 => {
                if let Some(stat) = &mut packets[at].stat {
                    stat.path = random.pick(&NAMES).into();
                    stat.mode = random.pick(&MODES);
                    stat.size = random.pick(&[-1, 0, 1, i64::MAX]);
                    stat.mod_time = random.pick(&[i64::MIN, -1, 0, i64::MAX]);
                    stat.xattrs.insert("user.x\0".into(), vec![0; 3]);
                }
            }
            6 => {
                // Bytes of the message itself; what cannot be read never gets here.
                let mut bytes = other.encode_to_vec();
                if !bytes.is_empty() {
                    let place = random.below(bytes.len());
                    bytes[place] ^= 1 << random.below(8);
                }
                if let Ok(read) = Packet::decode(bytes.as_slice()) {
                    packets[at] = read;
                }
            }
            _ => {
                other.data = vec![b'x'; random.below(100_000)].into();
                packets[at] = other;
            }
        }
        if packets.is_empty() {
            packets.push(packet(PacketType::PacketFin));
        }
    }
    packets
}

const MODES: [u32; 8] =
    [0o644, go::DIR | 0o755, go::SYMLINK, go::NAMED_PIPE, go::SOCKET, go::DEVICE | 0o600, go::IRREGULAR, u32::MAX];

/// Plays packets to a receiver that writes a directory below `dir`.
async fn receiver(dir: &Path, packets: Vec<Packet>) -> Result<(), SessionError> {
    let (outgoing, mut said) = mpsc::channel(8);
    let writer = DirWriter::new(&dir.join("dest"), false).map_err(|e| SessionError::io("a directory", e))?;
    let incoming = stream::iter(packets.into_iter().map(Ok));
    let drain = async { while said.recv().await.is_some() {} };
    let options = TransferOptions::default();
    let (done, ()) = tokio::join!(receive(incoming, outgoing, writer, &options), drain);
    done.map(drop)
}

/// Plays packets to a sender of the directory `dir`; returns what it sent.
async fn sender(dir: &Path, packets: Vec<Packet>) -> Vec<Packet> {
    let (outgoing, mut said) = mpsc::channel(8);
    let tree = DirTree::open(dir).expect("the directory");
    let incoming = stream::iter(packets.into_iter().map(Ok));
    let mut sent = Vec::new();
    let options = TransferOptions::default();
    let drain = async {
        while let Some(packet) = said.recv().await {
            sent.push(packet);
        }
    };
    let _ = tokio::join!(send(incoming, outgoing, tree, Ending::Confirmed, &options), drain);
    sent
}

/// One seed: one directory, one script.
async fn one(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9));
    let top = tempfile::tempdir().expect("a directory");
    let dir = top.path().join("in");
    fs::create_dir(&dir).expect("a directory");
    let packets = mutate(&mut random, honest());
    let done = tokio::time::timeout(PATIENCE, receiver(&dir, packets.clone())).await;
    let done = done.unwrap_or_else(|_| panic!("seed {seed}: the receiver hangs on {packets:?}"));
    let names =
        |dir: &Path| fs::read_dir(dir).expect("a directory").flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    assert_eq!(names(top.path()), ["in"], "seed {seed}: written outside by {packets:?}");
    match done {
        Ok(()) => assert_eq!(names(&dir), ["dest"], "seed {seed}"),
        // A peer that breaks the rules once everything is there gets an error; what is there is whole.
        Err(error) => {
            let left = names(&dir);
            assert!(left.iter().all(|name| name == "dest"), "seed {seed}: {error}: {left:?} is left of {packets:?}");
        }
    }
    fs::write(top.path().join("secret"), "outside").expect("a file");
    fs::write(dir.join("a"), "inside").expect("a file");
    let requests = (0..random.below(6)).map(|_| Packet {
        r#type: random.pick(&[1, 1, 1, 3, 4, 2, 0, 9]),
        id: random.pick(&[0, 0, 1, 2, u32::MAX]),
        ..Packet::default()
    });
    let sent = tokio::time::timeout(PATIENCE, sender(&dir, requests.collect())).await;
    let sent = sent.unwrap_or_else(|_| panic!("seed {seed}: the sender hangs"));
    assert!(!sent.iter().any(|packet| packet.data.starts_with(b"outside")), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_with_odd_peers_end() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (first, start) = (number("KILN_FUZZ_SEED").unwrap_or(0), Instant::now());
    let limit = number("KILN_FUZZ_SECONDS").map(Duration::from_secs);
    let mut seed = first;
    while limit.map_or(seed < first + FEW, |limit| start.elapsed() < limit) {
        one(seed).await;
        seed += 1;
    }
    assert!(seed > first);
}
