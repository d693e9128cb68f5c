//! Tests of the reader with archives written byte by byte.

use super::*;
use crate::tar::{END, Header, encode};

fn header(path: &[u8], kind: u8, size: u64) -> Header<'_> {
    Header { path, kind, mode: 0o644, uid: 1, gid: 2, mtime: 3, size, link: b"", device: (0, 0), xattrs: None }
}

fn raw(path: &[u8], kind: u8, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&header(path, kind, data.len() as u64), &mut out);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// Sets bytes of a header and its checksum.
fn patch(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest..).find(|len| rest + len.to_string().len() == *len).unwrap();
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

type Whole = Vec<(Member, Vec<u8>)>;

fn read(archive: &[u8]) -> Result<Whole> {
    let mut reader = Reader::new(archive);
    let mut members = Vec::new();
    while let Some(member) = reader.next_member()? {
        let mut data = vec![0u8; usize::try_from(member.size).unwrap().min(1 << 20)];
        reader.read_data(&member, |offset, bytes| {
            let at = usize::try_from(offset).unwrap();
            data[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })?;
        members.push((member, data));
    }
    Ok(members)
}

fn problem(archive: &[u8]) -> ArchiveProblem {
    match read(archive) {
        Err(Error::Archive { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn plain_members() {
    let archive = [raw(b"a", b'0', b"hello"), raw(b"b/", b'5', b""), raw(b"c/", 0, b""), END.to_vec()].concat();
    let members = read(&archive).unwrap();
    assert_eq!(members[0].0.path, b"a");
    assert_eq!((members[0].0.uid, members[0].0.gid, members[0].0.mtime), (1, 2, (3, 0)));
    assert_eq!(members[0].1, b"hello");
    assert_eq!((members[1].0.kind, members[2].0.kind), (MemberKind::Dir, MemberKind::Dir));
}

#[test]
fn what_was_not_read_is_skipped() {
    let archive = [raw(b"a", b'0', &[1; 3000]), raw(b"b", b'0', b"x")].concat();
    let mut reader = Reader::new(&archive[..]);
    assert_eq!(reader.next_member().unwrap().unwrap().path, b"a");
    assert_eq!(reader.next_member().unwrap().unwrap().path, b"b");
    assert!(reader.next_member().unwrap().is_none(), "an archive may end without its two blocks");
}

#[test]
fn encoded_headers_read_back() {
    let long = [b"d/".repeat(150), b"name".to_vec()].concat();
    let odd = [&b"\xff\xfe/"[..], &[b'n'; 255]].concat();
    let xattrs = BTreeMap::from([(b"user.x=y".to_vec(), vec![0, 10, 255]), (b"security.capability".to_vec(), vec![1])]);
    for path in
        [&b"short"[..], &[b'a'; 100], &[b'a'; 101], &long, &odd, &[&[b'p'; 120][..], b"/", &[b'q'; 90]].concat()]
    {
        for link in [&b""[..], &[b'l'; 101], b"\xc3\xa4"] {
            for mtime in [0, -5, 1 << 40] {
                for xattrs in [None, Some(&xattrs)] {
                    let kind = if link.is_empty() { b'0' } else { b'2' };
                    let want = Header { link, mtime, uid: 5_000_000, gid: u32::MAX, xattrs, ..header(path, kind, 0) };
                    let mut archive = Vec::new();
                    encode(&want, &mut archive);
                    assert_eq!(archive.len() % 512, 0);
                    let members = read(&archive).unwrap();
                    let member = &members[0].0;
                    assert_eq!((&member.path[..], &member.link[..]), (path, link));
                    assert_eq!((member.mtime, member.uid, member.gid), ((mtime, 0), 5_000_000, u32::MAX));
                    assert_eq!(Some(&member.xattrs).filter(|x| !x.is_empty()), xattrs);
                }
            }
        }
    }
}

#[test]
fn large_sizes_need_records() {
    let mut archive = Vec::new();
    encode(&header(b"big", b'0', 9 << 30), &mut archive);
    let mut reader = Reader::new(&archive[..]);
    assert_eq!(reader.next_member().unwrap().unwrap().size, 9 << 30);
}

#[test]
fn gnu_long_names_and_base_256() {
    let name = [b"dir/".repeat(60), b"file".to_vec()].concat();
    let mut last = raw(b"cut", b'0', b"data");
    let mut id = vec![0x80, 0, 0, 0];
    id.extend_from_slice(&3_000_000_000u32.to_be_bytes());
    patch(&mut last, 108, &id);
    patch(&mut last, 136, &[0xff; 12]);
    let archive = [raw(b"././@LongLink", b'L', &[&name[..], b"\0"].concat()), last].concat();
    let members = read(&archive).unwrap();
    assert_eq!(members[0].0.path, name);
    assert_eq!((members[0].0.uid, members[0].0.mtime), (3_000_000_000, (-1, 0)));

    let mut link = raw(b"l", b'2', b"");
    patch(&mut link, 157, b"cut");
    let archive = [raw(b"././@LongLink", b'K', &[&name[..], b"\0"].concat()), link].concat();
    assert_eq!(read(&archive).unwrap()[0].0.link, name);
}

#[test]
fn pax_fractions_and_globals() {
    let global = [record("mtime", b"7.25"), record("path", b"not inherited")].concat();
    let own = record("mtime", b"-0.5");
    let archive =
        [raw(b"g", b'g', &global), raw(b"a", b'0', b""), raw(b"x", b'x', &own), raw(b"b", b'0', b"")].concat();
    let members = read(&archive).unwrap();
    assert_eq!((&members[0].0.path[..], members[0].0.mtime), (&b"a"[..], (7, 250_000_000)));
    assert_eq!((&members[1].0.path[..], members[1].0.mtime), (&b"b"[..], (-1, 500_000_000)));
}

#[test]
fn all_forms_of_sparse_files() {
    let mut expected = vec![0u8; 4000];
    expected[1000..1003].copy_from_slice(b"one");
    expected[3000..3003].copy_from_slice(b"two");

    let v00 = [
        record("GNU.sparse.size", b"4000"),
        record("GNU.sparse.numblocks", b"2"),
        record("GNU.sparse.offset", b"1000"),
        record("GNU.sparse.numbytes", b"3"),
        record("GNU.sparse.offset", b"3000"),
        record("GNU.sparse.numbytes", b"3"),
    ]
    .concat();
    let v01 = [
        record("GNU.sparse.size", b"4000"),
        record("GNU.sparse.name", b"s"),
        record("GNU.sparse.map", b"1000,3,3000,3"),
    ]
    .concat();
    let v10 = [
        record("GNU.sparse.major", b"1"),
        record("GNU.sparse.minor", b"0"),
        record("GNU.sparse.name", b"s"),
        record("GNU.sparse.realsize", b"4000"),
    ]
    .concat();
    let mut map = b"2\n1000\n3\n3000\n3\n".to_vec();
    map.resize(512, 0);
    let mut old = raw(b"s", b'S', b"onetwo");
    patch(&mut old, 386, b"00000001750\x0000000000003\x0000000005670\x0000000000003\0");
    patch(&mut old, 483, b"00000007640\0");
    let forms = [
        [raw(b"x", b'x', &v00), raw(b"s", b'0', b"onetwo")].concat(),
        [raw(b"x", b'x', &v01), raw(b"ignored", b'0', b"onetwo")].concat(),
        [raw(b"x", b'x', &v10), raw(b"ignored", b'0', &[&map[..], b"onetwo"].concat())].concat(),
        old,
    ];
    for (i, archive) in forms.iter().enumerate() {
        let archive = [&archive[..], &raw(b"next", b'0', b"n")].concat();
        let members = read(&archive).unwrap_or_else(|e| panic!("form {i}: {e}"));
        assert_eq!(members[0].0.path, b"s", "form {i}");
        assert!(members[0].1 == expected, "form {i}");
        assert_eq!((&members[1].0.path[..], &members[1].1[..]), (&b"next"[..], &b"n"[..]), "form {i}");
    }
}

#[test]
fn old_sparse_files_with_many_parts() {
    let mut head = raw(b"s", b'S', &[7; 10]);
    let data = head.split_off(512);
    for i in 0..4 {
        patch(&mut head, 386 + 24 * i, format!("{:011o}\0{:011o}\0", i * 100, 1).as_bytes());
    }
    patch(&mut head, 482, &[1]);
    patch(&mut head, 483, b"00000001750\0");
    let mut more = [0u8; 512];
    for i in 0..6 {
        more[24 * i..24 * i + 24].copy_from_slice(format!("{:011o}\0{:011o}\0", 400 + i * 100, 1).as_bytes());
    }
    let archive = [&head[..], &more, &data].concat();
    let members = read(&archive).unwrap();
    assert_eq!(members[0].0.size, 1000);
    assert_eq!(members[0].1.iter().filter(|&&b| b == 7).count(), 10);
    assert_eq!(members[0].1[900], 7);
}

#[test]
fn cut_archives_are_truncated_wherever_they_are_cut() {
    let archive = [raw(b"x", b'x', &record("path", b"name")), raw(b"a", b'0', &[5; 700])].concat();
    for cut in 1..archive.len() {
        // At the very end of a header's data the archive merely ends early; what follows decides.
        match read(&archive[..cut]) {
            Err(Error::Archive { problem, .. }) => assert_eq!(problem, ArchiveProblem::Truncated, "cut at {cut}"),
            Ok(members) => assert!(members.is_empty() && cut == 1024, "cut at {cut}"),
            Err(e) => panic!("cut at {cut}: {e}"),
        }
    }
}

#[test]
fn bad_headers_have_their_problem() {
    let mut sum = raw(b"a", b'0', b"");
    sum[0] = b'b';
    assert_eq!(problem(&sum), ArchiveProblem::Checksum);

    let mut size = raw(b"a", b'0', b"");
    patch(&mut size, 124, b"9999999999x\0");
    assert_eq!(problem(&size), ArchiveProblem::BadValue("size"));
    patch(&mut size, 124, &[0xff; 12]);
    assert_eq!(problem(&size), ArchiveProblem::BadValue("size"));

    let mut uid = raw(b"a", b'0', b"");
    patch(&mut uid, 108, &[0xff; 8]);
    assert_eq!(problem(&uid), ArchiveProblem::BadValue("uid"));

    let mut kind = raw(b"a", b'0', b"");
    patch(&mut kind, 156, b"M");
    assert_eq!(problem(&kind), ArchiveProblem::UnknownType(b'M'));

    let mut large = raw(b"a", b'L', b"");
    patch(&mut large, 124, b"00010000000\0");
    assert_eq!(problem(&large), ArchiveProblem::TooLarge("a long name"));

    assert_eq!(problem(&[raw(b"x", b'x', b"junk"), raw(b"a", b'0', b"")].concat()), ArchiveProblem::BadExtendedHeader);
    let huge = record("size", b"18446744073709551615");
    assert_eq!(problem(&[raw(b"x", b'x', &huge), raw(b"a", b'0', b"")].concat()), ArchiveProblem::Truncated);
}

#[test]
fn garbage_never_panics() {
    let seed = [
        raw(b"x", b'x', &record("GNU.sparse.map", b"0,1,5,2")),
        raw(b"a", b'0', b"xyz"),
        raw(b"s", b'S', b"data"),
        raw(b"l", b'L', b"long name\0"),
        raw(b"d/", b'5', b""),
    ]
    .concat();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let mut good = 0;
    for _ in 0..30_000 {
        let mut archive = seed.clone();
        for _ in 0..=next(3) {
            let block = next(archive.len() / 512) * 512;
            let at = next(512);
            // A byte of a header with its checksum put right, so that the change is looked at.
            if block + 512 <= archive.len() && at < 148 || at >= 156 {
                let byte = next(256) as u8;
                patch(&mut archive[block..block + 512], at, &[byte]);
            }
        }
        good += usize::from(Reader::new(&archive[..]).next_member().is_ok());
        let mut reader = Reader::new(&archive[..]);
        while let Ok(Some(member)) = reader.next_member() {
            if reader.read_data(&member, |_, _| Ok(())).is_err() {
                break;
            }
        }
    }
    assert!(good > 100);
}
